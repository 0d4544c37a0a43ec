"""The network without this machine and its link: a job's internet sockets are TCP, and a broker makes them.

The filter of system calls hands ``socket(AF_INET or AF_INET6, SOCK_STREAM)`` to the broker, a process outside of the
sandbox that runs as the workspace's user (seccomp_unotify(2)). It makes the socket, attaches an egress filter to it for
good, and passes it into the job. Linux runs the filter, on the socket, and it tests the sender of an answer, not the
destination that the job named: a destination is in the job's memory, where another thread may change it between
the check and the call. So the broker reads only the three numbers of the call, which Linux has copied, and it
needs neither CAP_SYS_PTRACE nor a namespace. Without the broker the call fails with ENOSYS, so it cannot be bypassed.

There are two egress filters: `bpf_filter`, and `tcp_md5` where Linux reserves the first for CAP_NET_ADMIN and the
launcher does not have it (an ordinary container).

Alternatives that were rejected: answering connect(2) and sendmsg(2) in the broker has to read the job's memory, which
an ordinary container forbids for a process that is not dumpable; firewall rules need CAP_NET_ADMIN; a proxy serves
only programs that support it; IP_PKTINFO overrides SO_BINDTODEVICE, which also leaves the metadata service in reach.

Datagrams are refused, because one can act without an answer. Names are therefore resolved over TCP
(`kernel_spec.kernel.environment.RESOLVER_WITHOUT_DATAGRAMS`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NoReturn

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.egress import bpf_filter, denied_addresses, tcp_md5
from kernel_spec.sandbox.layers import dumpable, identity, no_new_privs, parent_death, rlimits
from kernel_spec.sandbox.layers.parent_death import Lineage
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import NETWORK_POLICY, SandboxPlan

EgressFilter = Callable[[socket.socket], None]

# struct seccomp_notif, seccomp_notif_resp, seccomp_notif_addfd and the requests on them, linux/seccomp.h.
_NOTICE_BYTES: Final = 80
_RECEIVE: Final = 0xC0502100
_ANSWER: Final = 0xC0182101
_ADD_DESCRIPTOR: Final = 0x40182103
_ADD_AND_ANSWER: Final = 2  # SECCOMP_ADDFD_FLAG_SEND, Linux 5.14

#: Three retries, 15 s in all, instead of two minutes: a denied address never answers.
_TCP_SYNCNT: Final = 7
_SYN_RETRIES: Final = 3
_HANDSHAKE_SECONDS: Final = 5.0
_READY: Final = b"k"
_CAP_NET_ADMIN: Final = 12


def start_broker(give_up_rights: Callable[[], None]) -> tuple[int, socket.socket]:
    """Fork a broker and return its pid and the socket for `hand_over`.

    Parameters
    ----------
    give_up_rights : callable
        Called first in the broker process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        # Never returns: no code of the caller may run in this process.
        _be_broker(theirs, give_up_rights)
    theirs.close()
    return pid, ours


def start_broker_of(plan: SandboxPlan, lineage: Lineage) -> socket.socket:
    """Fork the broker of a plan from the intermediate process of a start; it ends with the launcher and with the
    kernel.
    """

    def give_up_rights() -> None:
        os.setsid()
        rlimits.apply(plan)
        # For `bpf_filter`, where Linux requires it: the only right that is kept.
        with identity.keeping(_CAP_NET_ADMIN):
            if plan.identity is not None:
                identity.become(plan.identity)
        no_new_privs.apply()
        dumpable.apply()
        parent_death.follow_launcher(plan.parent_pid, lineage)

    return start_broker(give_up_rights)[1]


def hand_over(listener: int, broker: socket.socket) -> None:
    """Send the broker the descriptor on which the filter's requests arrive, and wait until it serves.

    Both descriptors are closed in any case: a job with the first could answer its own requests.

    Raises
    ------
    SandboxError
        The broker has ended or does not answer.
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
        # A stop of the whole service signals all processes, and the gateway drains. This process ends with its job.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        give_up_rights()
        syscalls.close_range(0, channel.fileno() - 1)
        syscalls.close_range(channel.fileno() + 1, 0x7FFFFFFF)
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        (listener,) = descriptors
        egress_filter = _choose_filter()
        channel.send(_READY)
        channel.close()
        _serve(listener, egress_filter)
    finally:
        # No process reads an error; the kernel finds the channel closed, or the call refused.
        os._exit(0)


def _choose_filter() -> EgressFilter:
    """Return the better of the filters that may be attached here, found by trying before the first request."""
    filter_program = bpf_filter.program(denied_addresses.nameservers())
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            bpf_filter.attach(trial, filter_program)
        except PermissionError:
            tcp_md5.attach(trial)
            return tcp_md5.attach
    return partial(bpf_filter.attach, filter_program=filter_program)


def _serve(listener: int, egress_filter: EgressFilter) -> None:
    """Answer requests until no process has the filter of system calls any more."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while True:
        for _, events in poller.poll():
            if not events & select.POLLIN:
                return
            notice = bytearray(_NOTICE_BYTES)
            # The caller may have ended or been interrupted by a signal before the request is read or answered.
            with suppress(OSError):
                fcntl.ioctl(listener, _RECEIVE, notice)
                _answer(listener, notice, egress_filter)


def _answer(listener: int, notice: bytearray, egress_filter: EgressFilter) -> None:
    (number,) = struct.unpack_from("=Q", notice)
    family, kind, protocol = (argument & 0xFFFFFFFF for argument in struct.unpack_from("=3Q", notice, 32))
    try:
        with _make(family, kind, protocol, egress_filter) as made:
            flags = os.O_CLOEXEC if kind & socket.SOCK_CLOEXEC else 0
            added = struct.pack("=QIIII", number, _ADD_AND_ANSWER, made.fileno(), 0, flags)
            fcntl.ioctl(listener, _ADD_DESCRIPTOR, added)
    except OSError as error:
        # EMFILE is the job's own limit; ENOENT: the caller does not wait any more.
        if error.errno != errno.ENOENT:
            fcntl.ioctl(listener, _ANSWER, struct.pack("=QqiI", number, 0, -(error.errno or errno.EACCES), 0))


def _make(family: int, kind: int, protocol: int, egress_filter: EgressFilter) -> socket.socket:
    if family not in (socket.AF_INET, socket.AF_INET6) or protocol not in (0, socket.IPPROTO_TCP):
        # The filter of system calls passes on nothing else; should it ever, the call is refused.
        raise OSError(errno.EACCES, "not a TCP socket")
    made = socket.socket(family, socket.SOCK_STREAM | (kind & socket.SOCK_NONBLOCK), socket.IPPROTO_TCP)
    try:
        egress_filter(made)
        made.setsockopt(socket.IPPROTO_TCP, _TCP_SYNCNT, _SYN_RETRIES)
    except BaseException:
        made.close()
        raise
    return made
