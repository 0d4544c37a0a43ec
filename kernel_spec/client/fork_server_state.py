"""The state of the launcher's fork server, as its messages report it."""

from __future__ import annotations

import asyncio
import logging

from kernel_spec.client.connection import resolve
from kernel_spec.protocol.messages import ForkServerChanged

log = logging.getLogger(__name__)


class ForkServerState:
    """The last reported state, and the number of starts."""

    def __init__(self) -> None:
        self._last = ForkServerChanged("starting", "no message yet")
        self._starts = 0
        self._awaiting_change: list[asyncio.Future[None]] = []

    def set_initial(self, state: str, reason: str) -> None:
        """Set the state that the launcher has when its messages are read for the first time."""
        self._last = ForkServerChanged(state, reason)
        if state == "ready":
            # The fork server was ready before its messages were read.
            self._starts = max(1, self._starts)

    def on_changed(self, message: ForkServerChanged) -> None:
        """Update the state from a message of the launcher."""
        self._last = message
        self._starts += message.state == "ready"
        for change in self._awaiting_change:
            resolve(change, None)
        self._awaiting_change.clear()
        level = logging.WARNING if message.state == "waiting" else logging.INFO
        log.log(level, "fork server %s: %s", message.state, message.reason)

    def status(self) -> dict[str, object]:
        """Return the state, its reason, and the number of restarts."""
        return {"state": self._last.state, "reason": self._last.reason, "restarts": max(0, self._starts - 1)}

    async def changed(self) -> None:
        """Return at the next change of the state."""
        change = asyncio.get_running_loop().create_future()
        self._awaiting_change.append(change)
        await change
