"""Queries of the database of the job store, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import TypeVar

from gateway.jobs.store.writer import Writer

T = TypeVar("T")


class Reader:
    """Runs queries on a connection.

    Parameters
    ----------
    connection : sqlite3.Connection
        Used under `lock` only.
    lock : threading.Lock
        Guards the connection.
    """

    def __init__(self, connection: sqlite3.Connection, lock: threading.Lock) -> None:
        self._connection = connection
        self._lock = lock

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of a query; blocks.

        Parameters
        ----------
        question : callable
            Gets the connection.
        """
        with self._lock:
            return question(self._connection)

    async def ask_after(self, writer: Writer, question: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of a query that sees every earlier change.

        Parameters
        ----------
        writer : Writer
            Of these changes.
        question : callable
            Gets the connection; in a thread.
        """
        if not writer.is_idle:
            with contextlib.suppress(sqlite3.Error):  # a full disk can still be read
                await writer.write(lambda connection: None)  # commits every pending change too
        return await asyncio.to_thread(self.ask, question)

    def close(self) -> None:
        """Close the connection; blocks."""
        with self._lock:
            self._connection.close()
