"""A job of a gateway with ALLOW_NETWORK, in each of the places that test_security.py plays."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.ordinary_container import POD_UID
from tests.test_security import CONTAINER, HERE, IN_CONTAINER, IN_POD, why_not_contained

TRY_LOOPBACK = """
import ctypes, errno, json, os, socket, struct
import pandas as pd
PORT, OUTSIDE = 0, ""
def tried(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return "worked"
def silently():
    # as a library written in C calls it, past the hint
    with socket.socket() as made:
        made.settimeout(0)
        ctypes.CDLL(None).connect(made.fileno(), struct.pack("!HH4s8x", 2 << 8, PORT, bytes([127, 0, 0, 1])), 16)
        made.getpeername()
def beside():
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(OUTSIDE)
def listed():
    with open("/proc/self/net/unix") as sockets:
        if OUTSIDE not in sockets.read():
            raise FileNotFoundError(errno.ENOENT, OUTSIDE)
def transform():
    seen = {
        "python": tried(lambda: socket.create_connection(("127.0.0.1", PORT), 5).close()),
        "library": tried(silently),
        "udp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
        "metadata": tried(lambda: socket.create_connection(("169.254.169.254", 80), 1)),
        "beside": tried(beside),
        "listed": tried(listed),
        "resolver": os.environ.get("RES_OPTIONS"),
        "pool": __import__("multiprocessing").Pipe()[0].fileno() > 0,
    }
    return pd.DataFrame({"seen": [json.dumps(seen)]})
"""


def with_network(launch: tuple[str, ...], **settings: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a job with the network managed, and what the gateway says of its sandbox."""
    owner_uid = POD_UID if "--pod" in launch else -1
    environment = {"SLOTS": "1", "HOME": "/tmp", "ALLOW_NETWORK": "1", **settings}
    with (
        GatewayProcess(environment, launch=launch, owner_uid=owner_uid) as gateway,
        socket.socket(socket.AF_UNIX) as outside,
    ):
        path = gateway.state_dir / "outside.sock"
        outside.bind(str(path))
        path.chmod(0o777)
        outside.listen()
        code = TRY_LOOPBACK.replace('PORT, OUTSIDE = 0, ""', f"PORT, OUTSIDE = {gateway.port}, {str(path)!r}")
        answer = gateway.execute(code, inline=True)
        assert answer.status == 200, answer.raw
        seen = json.loads(json.loads(answer.body["output"])["seen"])
        return seen, gateway.request("GET", "/v1/status").body["sandbox"]


@pytest.mark.parametrize("where", [HERE, IN_CONTAINER, IN_POD])
def test_job_with_the_network_does_not_reach_this_machine(where: str) -> None:
    if where != HERE and why_not_contained():
        pytest.skip(why_not_contained())
    launch = {HERE: ("-m", "gateway"), IN_CONTAINER: CONTAINER, IN_POD: (*CONTAINER, "--pod")}[where]
    seen, sandbox = with_network(launch)
    assert seen == {
        "python": "EACCES",
        "library": "ENOTCONN",
        "udp": "EPROTONOSUPPORT",
        "metadata": "EACCES",
        "beside": "ENOENT" if "mount_namespace" in sandbox["used_layers"] else "EACCES",
        "listed": "ENOENT" if "mount_namespace" in sandbox["used_layers"] else "EACCES",
        "resolver": "use-vc",
        "pool": True,
    }
    assert sandbox["allow_network"] is True
    assert "network_policy" in sandbox["used_layers"]
    assert ("network_namespace" in sandbox["used_layers"]) is ("mount_namespace" in sandbox["used_layers"])


def test_loopback_is_reached_when_it_is_allowed_in_words() -> None:
    seen, sandbox = with_network(("-m", "gateway"), ALLOW_LOOPBACK="1")
    assert (seen["python"], seen["library"], seen["udp"], seen["resolver"]) == ("worked", "worked", "worked", None)
    lines = [line for line in sandbox["layers"] if line["layer"] in ("network_namespace", "network_policy")]
    why = "jobs have all of the network: allow_loopback is set"
    assert [(line["state"], line["why"]) for line in lines] == [("off", why)] * 2
