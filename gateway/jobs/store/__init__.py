"""The jobs of a gateway on disk: those that are not over, and the history of those that are."""

from gateway.jobs.store.history import HistoryEntry, HistoryPage, HistoryQuery
from gateway.jobs.store.record import IdempotencyKey, JobRecord
from gateway.jobs.store.store import JobStore
from gateway.jobs.store.unfinished import StoredJob

__all__ = [
    "HistoryEntry",
    "HistoryPage",
    "HistoryQuery",
    "IdempotencyKey",
    "JobRecord",
    "JobStore",
    "StoredJob",
]
