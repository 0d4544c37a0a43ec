"""The network without this machine and its link: a job's internet sockets are TCP, and a broker makes them.

The filter of system calls hands ``socket(AF_INET or AF_INET6, SOCK_STREAM)`` to the broker, a process outside of the
sandbox that runs as the seat's user (seccomp_unotify(2)). It makes the socket, puts a fence around it for good, and
passes it into the job. The fence is in the kernel, on the socket, and judges who answers, not whom the job named: a
destination lies in the job's memory, where another thread may change it between the check and the call. So the broker
reads nothing but the three numbers of the call, which the kernel has copied, and it needs neither CAP_SYS_PTRACE nor a
namespace. When it is gone the call fails with ENOSYS: no way leads around it.

There are two fences. `answer_filter` is the better one; where the kernel keeps it to CAP_NET_ADMIN and the launcher has
not got that (an ordinary container), `signed_peers` does.

Weighed and left: answering connect(2) and sendmsg(2) in the broker has to read the job's memory, which an ordinary
container forbids for a process that is not dumpable; firewall rules need CAP_NET_ADMIN; a proxy serves only programs
that know of it; SO_BINDTODEVICE is overruled by IP_PKTINFO and leaves the metadata service in reach.

Datagrams are refused, because one needs no answer to do its work. Names are therefore asked for over TCP
(`kernel_spec.environment.RESOLVER_WITHOUT_DATAGRAMS`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn

from kernel_spec.sandbox import (
    answer_filter,
    dumpable,
    identity,
    no_new_privs,
    out_of_bounds,
    parent_death,
    rlimits,
    signed_peers,
    syscalls,
)
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.parent_death import Lineage
from kernel_spec.sandbox.plan import NETWORK_POLICY, SandboxPlan

Fence = Callable[[socket.socket], None]

# struct seccomp_notif, seccomp_notif_resp, seccomp_notif_addfd and the requests on them, linux/seccomp.h.
_NOTICE_BYTES: Final = 80
_RECEIVE: Final = 0xC0502100
_ANSWER: Final = 0xC0182101
_ADD_DESCRIPTOR: Final = 0x40182103
_ADD_AND_ANSWER: Final = 2  # SECCOMP_ADDFD_FLAG_SEND, Linux 5.14

# Three more tries after the first, 15 s in all: a place out of bounds never answers, and a job has no two minutes.
_TCP_SYNCNT: Final = 7
_SYN_RETRIES: Final = 3
_HANDSHAKE_SECONDS: Final = 5.0
_READY: Final = b"k"
_CAP_NET_ADMIN: Final = 12


def start_broker(give_up_rights: Callable[[], None]) -> tuple[int, socket.socket]:
    """Fork a broker and return its pid and the socket for `hand_over`.

    Parameters
    ----------
    give_up_rights
        Called first in the broker.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        # No frame of the caller may go on in here.
        _be_broker(theirs, give_up_rights)
    theirs.close()
    return pid, ours


def start_broker_of(plan: SandboxPlan, lineage: Lineage) -> socket.socket:
    """Fork the broker of a plan from the middle process of a start; it ends with the launcher and with the kernel."""

    def give_up_rights() -> None:
        os.setsid()
        rlimits.apply(plan)
        # For the filter, where the kernel wants it: the only right that is kept.
        with identity.keeping(_CAP_NET_ADMIN):
            if plan.identity is not None:
                identity.become(plan.identity)
        no_new_privs.apply()
        dumpable.apply()
        parent_death.follow_launcher(plan.parent_pid, lineage)

    return start_broker(give_up_rights)[1]


def hand_over(listener: int, broker: socket.socket) -> None:
    """Give the broker the descriptor on which the filter's questions arrive, and wait until it serves.

    Both are closed, whatever happens: a job that had the first could answer itself.

    Raises
    ------
    SandboxError
        The broker is gone or does not answer.
    """
    try:
        with broker:
            broker.settimeout(_HANDSHAKE_SECONDS)
            socket.send_fds(broker, [_READY], [listener])
            if broker.recv(1) != _READY:
                raise SandboxError(NETWORK_POLICY, "the broker of sockets ended")
    except OSError as error:
        raise SandboxError(NETWORK_POLICY, f"the broker of sockets does not answer: {error}") from error
    finally:
        os.close(listener)


def _be_broker(channel: socket.socket, give_up_rights: Callable[[], None]) -> NoReturn:
    try:
        give_up_rights()
        syscalls.close_range(0, channel.fileno() - 1)
        syscalls.close_range(channel.fileno() + 1, 0x7FFFFFFF)
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        (listener,) = descriptors
        fence = _choose_fence()
        channel.send(_READY)
        channel.close()
        _serve(listener, fence)
    finally:
        # Nobody listens to a reason; the kernel finds the channel closed, or the call refused.
        os._exit(0)


def _choose_fence() -> Fence:
    """Return the better of the fences that may be put up here; by trying, and before anybody asks for a socket."""
    filter_program = answer_filter.program(out_of_bounds.nameservers())
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            answer_filter.attach(trial, filter_program)
        except PermissionError:
            signed_peers.attach(trial)
            return signed_peers.attach
    return partial(answer_filter.attach, filter_program=filter_program)


def _serve(listener: int, fence: Fence) -> None:
    """Answer until no process has the filter any more."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while True:
        for _, events in poller.poll():
            if not events & select.POLLIN:
                return
            notice = bytearray(_NOTICE_BYTES)
            # The caller may be gone, or interrupted by a signal, by the time that it is asked or answered.
            with suppress(OSError):
                fcntl.ioctl(listener, _RECEIVE, notice)
                _answer(listener, notice, fence)


def _answer(listener: int, notice: bytearray, fence: Fence) -> None:
    (number,) = struct.unpack_from("=Q", notice)
    family, kind, protocol = (argument & 0xFFFFFFFF for argument in struct.unpack_from("=3Q", notice, 32))
    try:
        with _make(family, kind, protocol, fence) as made:
            flags = os.O_CLOEXEC if kind & socket.SOCK_CLOEXEC else 0
            added = struct.pack("=QIIII", number, _ADD_AND_ANSWER, made.fileno(), 0, flags)
            fcntl.ioctl(listener, _ADD_DESCRIPTOR, added)
    except OSError as error:
        # EMFILE is the job's own limit; ENOENT says that nobody waits any more.
        if error.errno != errno.ENOENT:
            fcntl.ioctl(listener, _ANSWER, struct.pack("=QqiI", number, 0, -(error.errno or errno.EACCES), 0))


def _make(family: int, kind: int, protocol: int, fence: Fence) -> socket.socket:
    if family not in (socket.AF_INET, socket.AF_INET6) or protocol not in (0, socket.IPPROTO_TCP):
        # The filter asks for nothing else; should it ever, nothing else is made.
        raise OSError(errno.EACCES, "not a TCP socket")
    made = socket.socket(family, socket.SOCK_STREAM | (kind & socket.SOCK_NONBLOCK), socket.IPPROTO_TCP)
    try:
        fence(made)
        made.setsockopt(socket.IPPROTO_TCP, _TCP_SYNCNT, _SYN_RETRIES)
    except BaseException:
        made.close()
        raise
    return made
