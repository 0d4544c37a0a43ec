"""The settings of one launcher. They are on its command line, so they must not contain a secret."""

from __future__ import annotations

import os

from msgspec import Struct


class LauncherOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a launcher.

    Attributes
    ----------
    state_dir : str
        Absolute path; workspaces are made in ``workspaces/`` below it.
    workspaces : int
        How many kernels may exist at once: running, ready, held, and one that is being removed.
    gateway_uid : int or None
        Owner of the files that the gateway passes to kernels; None is the user of the caller.
    fork_server : bool
        Whether a fork server forks the kernels; False starts each of them plainly.
    modules : tuple of str or None
        Modules that the fork server imports; None is `kernel_spec.fork_server.preload.DEFAULT_MODULES`.
    allow_network : bool
        Whether kernels may be started with the network; the probe of the sandbox then leaves out its network layers.
    own_uids : bool
        Whether each workspace has a user id of its own, which needs root.
    without_layers : tuple of str
        Sandbox layers not to use although the host has them.
    read_only_paths : tuple of str
        Further absolute paths that kernels may read.
    temporary : bool
        Remove `state_dir` itself at the end.
    allow_loopback : bool
        Whether kernels with the network also reach this machine and its link.
    """

    state_dir: str
    workspaces: int = 4
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
        if self.workspaces < 1:
            raise ValueError(f"workspaces must be at least 1, not {self.workspaces}")
