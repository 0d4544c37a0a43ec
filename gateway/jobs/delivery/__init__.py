"""Delivery of a job's results and log to the places that the request names."""

from gateway.jobs.delivery.deliverer import Deliverer
from gateway.jobs.delivery.job_delivery import JobOutputs

__all__ = ["Deliverer", "JobOutputs"]
