"""The part of a member that runs jobs of all members, in the slots of the runner of its machine."""

from gateway.cluster.host.host import ClusterHost

__all__ = ["ClusterHost"]
