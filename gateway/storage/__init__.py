"""Where tables come from and results go: objects behind URLs, directories, a live Metabase, this machine."""

from gateway.storage.artifacts import OpenOutput, open_output
from gateway.storage.connections import Connections
from gateway.storage.directory import deliver_files
from gateway.storage.events_object import LogEvent, events_object, log_event, stream_object
from gateway.storage.fetch import FetchedTable, fetch_tables
from gateway.storage.results import KeptResult, ResultStore
from gateway.storage.upload import put_object

__all__ = [
    "Connections",
    "FetchedTable",
    "KeptResult",
    "LogEvent",
    "OpenOutput",
    "ResultStore",
    "deliver_files",
    "events_object",
    "fetch_tables",
    "log_event",
    "open_output",
    "put_object",
    "stream_object",
]
