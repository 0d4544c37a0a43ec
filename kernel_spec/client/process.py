"""A launcher process and blocking requests to it; both kinds of clients build on this."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from kernel_spec.kernel.environment import interpreter_command, interpreter_environment
from kernel_spec.protocol.channel import Channel, ChannelClosed, ChannelError, close_all, pair
from kernel_spec.protocol.messages import GATEWAY_ANSWERS, ForkServerChanged, Hello, Refused, Request
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.protocol.values import ExitReport

#: The launcher probes the sandbox before its `Hello`; 0.2 s on an idle machine.
HELLO_SECONDS = 30.0
END_SECONDS = 12.0
#: Codes of a refusal after the launcher that had the kernel has ended.
KERNEL_GONE = ("launcher_lost", "no_kernel")


class LauncherError(Exception):
    """The launcher refused a request or is gone.

    Attributes
    ----------
    code : str
        For programs: ``kernel_start_failed``, ``sandbox_failed``, ``killed``, ``no_workspace``, ``not_confirmed``,
        ``launcher_lost``, ``launcher_failed``, ``wrong_owner``, ``timeout`` or another code of `Refused`.
    report : ExitReport or None
        How the kernel ended, if there was one.
    """

    def __init__(self, code: str, message: str, report: ExitReport | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.report = report

    @classmethod
    def of(cls, refusal: Refused) -> LauncherError:
        """Return the error for a refusal."""
        return cls(refusal.code, refusal.message, refusal.report)


class LauncherProcess:
    """A launcher that this process started, and this end of its control socket.

    It has the caller's privileges, and is ready when the constructor returns. All methods block, with deadlines; an
    event loop may use `channel` instead.

    Parameters
    ----------
    options : LauncherOptions
        Settings of the launcher.
    is_supervised : bool
        Whether `kernel_spec.supervisor` starts it, and starts another one when it has ended.

    Attributes
    ----------
    channel : Channel
        The control socket.
    supervision : socket or None
        Delivers the control socket of each later launcher, see `receive_control`; end of file: no other follows.

    Raises
    ------
    LauncherError
        It refused the options or died; the text says why. It does not run then.
    """

    def __init__(self, options: LauncherOptions, *, is_supervised: bool = False) -> None:
        ours, theirs = pair()
        self.supervision = ours if is_supervised else None
        self.channel = Channel(ours, accepts=GATEWAY_ANSWERS)
        try:
            self._process = _popen(options, theirs.fileno(), is_supervised=is_supervised)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            if self.supervision is not None:
                self.channel = self._first_channel(self.supervision)
            self.hello = self._await_hello()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the launcher that was started first."""
        return self.hello.pid

    def close(self) -> None:
        """Close the sockets, which ends every kernel, and wait for the launcher to end; safe to call twice."""
        if self.supervision is not None:
            # Close this first, or the supervisor would restart the launcher that ends now.
            self.supervision.close()
        self.channel.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            # Its kernels die as well, by the parent-death signal. A gateway that has dropped root may not do that; the
            # supervisor then does.
            with suppress(PermissionError):
                self._process.kill()
                self._process.wait()

    def _first_channel(self, supervision: socket.socket) -> Channel:
        supervision.settimeout(HELLO_SECONDS)
        try:
            channel = receive_control(supervision)
        except TimeoutError:
            raise LauncherError("timeout", f"the launcher was not started within {HELLO_SECONDS:g} s") from None
        if channel is None:
            raise LauncherError("launcher_failed", "the launcher's supervisor did not start; see its log")
        return channel

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


def ask(channel: Channel, request: Request, seconds: float, descriptors: Sequence[int] = ()) -> tuple[Any, list[int]]:
    """Send a request and wait for its answer; events that come first are dropped.

    Parameters
    ----------
    channel : Channel
        To the launcher.
    request : Request
        The request.
    seconds : float
        Time for the answer.
    descriptors : sequence of int
        Descriptors to send with the request; the caller's copies stay open.

    Returns
    -------
    answer : Answer
        The launcher's answer.
    descriptors : list of int
        The descriptors that came with it; the caller owns them.

    Raises
    ------
    LauncherError
        The request was refused, the launcher is gone, or no answer came in time.
    """
    deadline = time.monotonic() + seconds
    try:
        channel.set_timeout(seconds)
        channel.send(request, descriptors)
        while True:
            channel.set_timeout(max(0.001, deadline - time.monotonic()))
            answer, received = channel.receive()
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


def receive_control(supervision: socket.socket) -> Channel | None:
    """Return the control socket of the launcher that the supervisor has just started.

    Parameters
    ----------
    supervision : socket
        The socket to the supervisor.

    Returns
    -------
    Channel or None
        None at end of file: the supervisor is gone.

    Raises
    ------
    BlockingIOError, TimeoutError
        There is none yet.
    """
    try:
        _, descriptors, _, _ = socket.recv_fds(supervision, 1, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    return Channel(socket.socket(fileno=descriptors[0]), accepts=GATEWAY_ANSWERS) if descriptors else None


def _popen(options: LauncherOptions, control: int, *, is_supervised: bool) -> subprocess.Popen[bytes]:
    if options.gateway_uid is None:
        options = msgspec.structs.replace(options, gateway_uid=os.geteuid())
    try:
        text = msgspec.json.encode(options).decode()
    except UnicodeEncodeError:
        paths = ", ".join(map(ascii, (options.state_dir, *options.read_only_paths)))
        raise LauncherError("launcher_failed", f"STATE_DIR and all paths must be valid UTF-8: {paths}") from None
    return subprocess.Popen(
        interpreter_command("kernel_spec.supervisor" if is_supervised else "kernel_spec.launcher", str(control), text),
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
