"""A kernel over ipc that does one thing wrong: ``python misbehaving_kernel.py PREFIX KEY MODE``.

=============== ===================================================================
mode             what it does
=============== ===================================================================
mute             never welcomes a subscriber
forger           tells idle for a request that goes on
stranger         answers with a signature of another key, then tells text and idle properly
babbler          talks about other requests and sends 100,000 bytes of junk, then replies
deaf             welcomes, and never answers a request
clerk            answers a request that runs no code, and no other
swamper          tells a message of a million small objects, then answers
shouter          tells a gigabyte in one part of a message
flooder          tells a gigabyte in small parts of one message
=============== ===================================================================
"""

from __future__ import annotations

import sys

import zmq
from jupyter_client.session import Session


def flood(iopub: zmq.Socket, parts: int) -> None:
    part = b"x" * (1_000_000_000 // parts)
    iopub.send_multipart([b"stream", *[part] * parts], copy=False)


def execute(
    session: Session, other: Session, sockets: tuple[zmq.Socket, zmq.Socket], mode: str, identities: list, message: dict
) -> None:
    shell, iopub = sockets
    reply = {"status": "ok", "execution_count": 1}
    match mode:
        case "forger":
            session.send(iopub, "status", {"execution_state": "idle"}, parent=message, ident=b"status")
        case "stranger":
            other.send(shell, "execute_reply", reply, parent=message, ident=identities)
            other.send(iopub, "status", {"execution_state": "idle"}, parent=message, ident=b"status")
            session.send(iopub, "stream", {"name": "stdout", "text": "properly"}, parent=message, ident=b"stream")
            # over the same socket as the text, so that the one cannot overtake the other
            session.send(iopub, "status", {"execution_state": "idle"}, parent=message, ident=b"status")
        case "babbler":
            session.send(iopub, "status", {"execution_state": "idle"}, parent=None, ident=b"status")
            iopub.send_multipart([b"junk", b"x" * 100_000])
            shell.send_multipart([*identities, b"x" * 100_000])
            session.send(shell, "execute_reply", reply, parent=message, ident=identities)
        case "swamper":
            session.send(iopub, "display_data", {"data": [{}] * 1_000_000}, parent=message, ident=b"display_data")
            # over the same socket, so that it cannot overtake the message before it
            session.send(iopub, "status", {"execution_state": "idle"}, parent=message, ident=b"status")
        case "shouter" | "flooder":
            flood(iopub, parts=1000 if mode == "flooder" else 1)


def main(prefix: str, key: str, mode: str) -> None:
    context = zmq.Context()
    shell, iopub = context.socket(zmq.ROUTER), context.socket(zmq.XPUB)
    shell.bind(f"ipc://{prefix}-1")
    iopub.bind(f"ipc://{prefix}-2")
    session = Session(key=key.encode())
    poller = zmq.Poller()
    poller.register(shell, zmq.POLLIN)
    poller.register(iopub, zmq.POLLIN)
    print("bound", flush=True)
    while True:
        ready = dict(poller.poll())
        if iopub in ready and iopub.recv()[:1] == b"\x01" and mode != "mute":
            session.send(iopub, "iopub_welcome", {"subscription": ""}, ident=b"")
        if shell not in ready:
            continue
        identities, message = session.recv(shell)
        if message is None:
            continue
        if message["msg_type"] == "execute_request":
            execute(session, Session(key=b"another key"), (shell, iopub), mode, identities, message)
        elif message["msg_type"] == "comm_info_request" and mode == "clerk":
            session.send(shell, "comm_info_reply", {"comms": {}}, parent=message, ident=identities)


if __name__ == "__main__":
    main(*sys.argv[1:])
