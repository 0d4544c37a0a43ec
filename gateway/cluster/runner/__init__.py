"""The `gateway.jobs.runner.JobRunner` of a member: its jobs run on any host of the cluster."""

from gateway.cluster.runner.runner import ClusterRunner

__all__ = ["ClusterRunner"]
