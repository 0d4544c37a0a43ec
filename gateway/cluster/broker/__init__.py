"""The NATS server: connection, queue of jobs, records and messages. Only this package imports ``nats``.

Every call has a deadline. A write has two kinds of failure: `Refused`, it did not take effect, and `NoReply`, its
outcome is unknown.
"""

from gateway.cluster.broker import subjects
from gateway.cluster.broker.connection import MESSAGE_CAP_BYTES, Broker, Taking
from gateway.cluster.broker.records import Bucket, NoReply, Refused, Stored
from gateway.cluster.broker.streams import CLAIM_SECONDS

__all__ = [
    "CLAIM_SECONDS",
    "MESSAGE_CAP_BYTES",
    "Broker",
    "Bucket",
    "NoReply",
    "Refused",
    "Stored",
    "Taking",
    "subjects",
]
