"""How one launcher is set up; a value that goes to it on its command line, so nothing secret belongs here."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LauncherOptions:
    """Settings of a launcher.

    Attributes
    ----------
    state_dir
        Absolute path; seats are made in ``seats/`` below it.
    seats
        How many kernels may exist at once: running, ready, held, and one that is being removed.
    gateway_uid
        Owner of what the gateway hands to kernels; None is the user of the caller.
    fork_server
        Whether kernels are forked from a warm process; False starts each of them plainly.
    modules
        What the fork server imports; None is `kernel_spec.warmth.DEFAULT_MODULES`.
    allow_network
        Whether kernels may be started with the network; the sandbox is then tried, and its tier found, without that.
    allow_loopback
        Whether those kernels reach what is on this machine and on its link, too.
    own_uids
        Whether each seat has a user id of its own, which needs root.
    without_layers
        Sandbox layers not to use though the host has them.
    read_only_paths
        Further absolute paths that kernels may read.
    temporary
        Remove `state_dir` itself at the end.
    """

    state_dir: str
    seats: int = 4
    gateway_uid: int | None = None
    fork_server: bool = True
    modules: tuple[str, ...] | None = None
    allow_network: bool = False
    own_uids: bool = True
    without_layers: tuple[str, ...] = ()
    read_only_paths: tuple[str, ...] = ()
    temporary: bool = False
    allow_loopback: bool = False

    def __post_init__(self) -> None:
        if not os.path.isabs(self.state_dir):  # noqa: PTH117 - a string by choice
            raise ValueError(f"state_dir must be an absolute path, not {self.state_dir!r}")
        if self.seats < 1:
            raise ValueError(f"seats must be at least 1, not {self.seats}")
