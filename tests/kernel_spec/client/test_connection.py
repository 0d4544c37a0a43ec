"""Requests over the control socket of a launcher."""

from __future__ import annotations

import asyncio
import os

import pytest

from kernel_spec.client.connection import LauncherConnection
from kernel_spec.protocol.channel import Channel, pair
from kernel_spec.protocol.messages import GATEWAY_ANSWERS, Started, Status


def test_descriptors_of_an_answer_that_comes_with_a_cancellation_are_closed() -> None:
    async def cancel_with_the_answer() -> None:
        ours, theirs = pair()
        launcher = Channel(theirs, accepts=(Status,))
        connection = LauncherConnection(Channel(ours, GATEWAY_ANSWERS), lambda _: None, lambda: None)
        connection.attach()
        asking = asyncio.create_task(connection.exchange(Status(1), Started, 60))
        await asyncio.sleep(0)
        launcher.receive()
        reader, writer = os.pipe()
        launcher.send(Started(1, 2, "fork"), (writer,))
        os.close(writer)
        connection._on_readable()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b"", "a copy of the writing end is open"
        os.close(reader)
        connection.detach()
        ours.close()
        launcher.close()

    asyncio.run(cancel_with_the_answer())
