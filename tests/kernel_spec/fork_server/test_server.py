"""The fork server keeps nothing of the host for longer than that holds."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from kernel_spec.fork_server import server
from kernel_spec.protocol.channel import Channel, pair
from kernel_spec.protocol.messages import FORK_REQUESTS
from kernel_spec.sandbox.layers import readable_paths


def test_later_kernels_follow_a_link_of_the_host_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, paths = tmp_path / "resolv.conf", (f"{tmp_path}/resolv.conf",)
    for name in ("former", "present"):
        (tmp_path / name).touch()
    link.symlink_to("former")
    launcher, own = pair()
    with launcher, closing(Channel(own, accepts=FORK_REQUESTS)) as channel:
        fork_server = server.ForkServer(channel)
        os.close(fork_server._launcher_pidfd)
        former = (((str(link), "former"),), (f"{tmp_path}/former",))
        monkeypatch.setattr(server, "_LAYOUT_SECONDS", 3600.0)
        fork_server._lay_out(paths)
        link.unlink()
        link.symlink_to("present")
        fork_server._lay_out(paths)
        assert readable_paths.layout(paths) == former, "not looked up for each kernel"
        monkeypatch.setattr(server, "_LAYOUT_SECONDS", 0.0)
        fork_server._lay_out(paths)
        assert readable_paths.layout(paths) == (((str(link), "present"),), (f"{tmp_path}/present",))
