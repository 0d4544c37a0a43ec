"""Starting a launcher, and talking to it with blocking calls; what both kinds of clients stand on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from kernel_spec.channel import Channel, ChannelClosed, ChannelError, close_all, pair
from kernel_spec.codec import to_json
from kernel_spec.environment import interpreter_command, interpreter_environment
from kernel_spec.messages import GATEWAY_ANSWERS, ForkServerChanged, Hello, Refused
from kernel_spec.options import LauncherOptions

# The launcher probes the sandbox before it says hello; 0.2 s on an idle machine.
HELLO_SECONDS = 30.0
END_SECONDS = 12.0


class LauncherError(Exception):
    """The launcher refused a request or is gone.

    Attributes
    ----------
    code
        For programs: ``kernel_start_failed``, ``sandbox_failed``, ``killed``, ``no_seat``, ``not_confirmed``,
        ``launcher_lost``, ``launcher_failed``, ``timeout`` or another word of the launcher's.
    report : kernel_spec.messages.ExitReport or None
        How the kernel ended, if there was one.
    """

    def __init__(self, code: str, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.report = report

    @classmethod
    def of(cls, refusal: Refused) -> LauncherError:
        """Return the error for a refusal."""
        return cls(refusal.code, refusal.message, refusal.report)


class LauncherProcess:
    """A launcher that this process started, and our end of its control socket.

    Everything here blocks, with deadlines; `channel` may be taken over by an event loop.
    """

    def __init__(self, options: LauncherOptions) -> None:
        """Start the launcher with the caller's privileges, and wait until it is ready.

        Raises
        ------
        LauncherError
            It refused the options or died; the text says why. Nothing is left of it.
        """
        ours, theirs = pair()
        self.channel = Channel(ours, accepts=GATEWAY_ANSWERS)
        try:
            self._process = _popen(options, theirs.fileno())
        finally:
            theirs.close()
        try:
            self.hello = self._await_hello()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    def ask(self, request: Any, seconds: float, descriptors: Sequence[int] = ()) -> tuple[Any, list[int]]:
        """Send a request and wait for its answer; events that come first are dropped.

        Raises
        ------
        LauncherError
            Refused, gone, or no answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        try:
            self.channel.set_timeout(seconds)
            self.channel.send(request, descriptors)
            while True:
                self.channel.set_timeout(max(0.001, deadline - time.monotonic()))
                answer, received = self.channel.receive()
                if getattr(answer, "id", None) == request.id:
                    break
                close_all(received)
        except TimeoutError:
            raise LauncherError("timeout", f"no answer from the launcher within {seconds:g} s") from None
        except (ChannelClosed, ChannelError, OSError) as error:
            raise LauncherError("launcher_lost", f"the launcher is gone: {error}") from None
        if isinstance(answer, Refused):
            close_all(received)
            raise LauncherError.of(answer)
        return answer, received

    def close(self) -> None:
        """Close the socket, which ends every kernel, and wait for the launcher to end; safe to call twice."""
        self.channel.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            # Its kernels go with it, by the parent-death signal.
            self._process.kill()
            self._process.wait()

    def _await_hello(self) -> Hello:
        self.channel.set_timeout(HELLO_SECONDS)
        try:
            answer, descriptors = self.channel.receive()
            while isinstance(answer, ForkServerChanged):
                answer, descriptors = self.channel.receive()
        except TimeoutError:
            raise LauncherError("timeout", f"the launcher was not ready within {HELLO_SECONDS:g} s") from None
        except (ChannelClosed, ChannelError) as error:
            raise LauncherError("launcher_failed", f"the launcher did not start: {error}; see its log") from None
        close_all(descriptors)
        if isinstance(answer, Refused):
            raise LauncherError.of(answer)
        if not isinstance(answer, Hello):
            raise LauncherError("launcher_failed", f"the launcher began with {type(answer).__name__}")
        return answer


def _popen(options: LauncherOptions, control: int) -> subprocess.Popen[bytes]:
    if options.gateway_uid is None:
        options = dataclasses.replace(options, gateway_uid=os.geteuid())
    return subprocess.Popen(
        interpreter_command("kernel_spec.launcher", str(control), json.dumps(to_json(options))),
        env=interpreter_environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
        pass_fds=(control,),
        start_new_session=True,
    )


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
