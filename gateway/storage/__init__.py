"""Read tables and write results: objects behind URLs, directories, a live Metabase, the gateway's own disk."""

from gateway.storage.inputs.fetch import fetch_tables
from gateway.storage.inputs.fetched_table import FetchedTable
from gateway.storage.objects.client import ObjectClient
from gateway.storage.objects.retries import RetryPolicy
from gateway.storage.objects.target import expiry_of
from gateway.storage.outputs.directory import deliver_files
from gateway.storage.outputs.job_files import OpenOutput, open_output
from gateway.storage.outputs.kept_results import KeptResultStore
from gateway.storage.outputs.log_objects import events_object, stream_object
from gateway.storage.outputs.outbox import Outbox, OutboxNote
from gateway.storage.outputs.upload import put_object

__all__ = [
    "FetchedTable",
    "KeptResultStore",
    "ObjectClient",
    "OpenOutput",
    "Outbox",
    "OutboxNote",
    "RetryPolicy",
    "deliver_files",
    "events_object",
    "expiry_of",
    "fetch_tables",
    "open_output",
    "put_object",
    "stream_object",
]
