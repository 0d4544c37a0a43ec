"""Workspace recycling: removing everything that a kernel left, before the next one gets the workspace.

A job may leave a hundred thousand files. Their removal takes seconds, in which the workspace is neither free nor in
use. Without a queue, a reservation would be refused while all workspaces are being recycled, and a job would fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kernel_spec.launcher.event_loop import Loop, Timer
from kernel_spec.launcher.user_leases import WorkspaceError, WorkspaceUser
from kernel_spec.launcher.workspaces import WorkspacePool
from kernel_spec.linux.rmtree import removal_steps
from kernel_spec.protocol.values import Style, WorkspaceInfo

#: Less than a client waits for an answer; after this time a workspace is not likely to become free soon.
WAIT_SECONDS = 8.0

OnWorkspace = Callable[[WorkspaceUser, WorkspaceInfo], None]
OnRefusal = Callable[[str], None]


@dataclass(slots=True, eq=False)
class _Waiting:
    style: Style
    on_workspace: OnWorkspace
    on_refusal: OnRefusal
    deadline: Timer


class WorkspaceRecycler:
    """Hands out the workspaces of a launcher, first come, first served, and recycles them.

    Parameters
    ----------
    loop : Loop
        The launcher's loop.
    workspaces : WorkspacePool
        The opened workspaces.
    """

    def __init__(self, loop: Loop, workspaces: WorkspacePool) -> None:
        self._loop = loop
        self._workspaces = workspaces
        self._removals = 0
        self._waiting: deque[_Waiting] = deque()

    def reserve(self, on_workspace: OnWorkspace, on_refusal: OnRefusal, *, style: Style, may_become_free: bool) -> None:
        """Hand out a workspace or refuse: at once, or within `WAIT_SECONDS` where one may become free.

        Parameters
        ----------
        on_workspace : callable
            Called with the user and the workspace.
        on_refusal : callable
            Called instead, with the reason.
        style : Style
            Style of the kernel.
        may_become_free : bool
            Whether a kernel has ended or is ending, so that its workspace will be recycled.
        """
        if self._workspaces.free and not self._waiting:
            self._hand_out(style, on_workspace, on_refusal)
        elif may_become_free or self._removals:
            waiting = _Waiting(
                style, on_workspace, on_refusal, self._loop.call_later(WAIT_SECONDS, lambda: self._give_up(waiting))
            )
            self._waiting.append(waiting)
        else:
            on_refusal(f"all {len(self._workspaces.users)} workspaces are taken")

    def recycle(self, user: WorkspaceUser, workspace_dir: str, then: Callable[[str | None], None]) -> None:
        """Remove a workspace's directory in small steps and free the workspace.

        Parameters
        ----------
        user : WorkspaceUser
            The user of the workspace.
        workspace_dir : str
            Its directory.
        then : callable
            Called with None, or with the reason why the directory could not be removed; it is not used again then.
        """
        steps = removal_steps(workspace_dir)
        self._removals += 1

        def step() -> None:
            problem = None
            try:
                if next(steps, None) is not None:
                    self._loop.call_later(0.0, step)
                    return
                self._workspaces.release(user)
            except OSError as error:
                problem = f"{workspace_dir} could not be removed: {error}"
            self._removals -= 1
            then(problem)
            self._serve()

        step()

    def refuse_all(self, reason: str) -> None:
        """Refuse all waiting reservations: no more kernels are started."""
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.deadline.cancel()
            waiting.on_refusal(reason)

    def _serve(self) -> None:
        while self._waiting and self._workspaces.free:
            waiting = self._waiting.popleft()
            waiting.deadline.cancel()
            self._hand_out(waiting.style, waiting.on_workspace, waiting.on_refusal)

    def _hand_out(self, style: Style, on_workspace: OnWorkspace, on_refusal: OnRefusal) -> None:
        try:
            user, workspace = self._workspaces.take(style)
        except (WorkspaceError, OSError) as error:
            on_refusal(str(error))
            return
        on_workspace(user, workspace)

    def _give_up(self, waiting: _Waiting) -> None:
        self._waiting.remove(waiting)
        waiting.on_refusal(
            f"all {len(self._workspaces.users)} workspaces are taken, and none became free in {WAIT_SECONDS:g} s"
        )
