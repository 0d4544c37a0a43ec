"""The filter of system calls: from the rules (`seccomp_rules`) to a program that is installed for good.

libseccomp is not used: its binding pyseccomp 0.1.2 dates from 2021 and needs libseccomp.so on each host and in each
image, and the filter tests 64-bit pointers for null and hands calls to a broker (SECCOMP_RET_USER_NOTIF).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from kernel_spec.linux import bpf, syscalls
from kernel_spec.linux.syscall_numbers import NUMBERS
from kernel_spec.sandbox.layers import landlock, seccomp_rules
from kernel_spec.sandbox.layers.seccomp_rules import ALLOW, Policy, Rule
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import LANDLOCK, MOUNT_NAMESPACE, NETWORK_NAMESPACE, SECCOMP, SandboxPlan

# Offsets in struct seccomp_data.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4

#: Linux's own, without a name in `errno`: the filter was not compiled. The memory for that is one for all processes
#: of the host, and of those that ended it is given back later.
_ENOTSUPP: Final = 524
#: Less than a trial of the probe has.
_MEMORY_SECONDS: Final = 3.0
_PAUSE_SECONDS: Final = 0.05

#: Why a filter is refused that may be taken at another time.
NO_MEMORY: Final = "this host has no memory left for compiled filters (sysctl net.core.bpf_jit_limit)"

#: linux/audit.h
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000


def policy_of(plan: SandboxPlan) -> Policy:
    """Return the policy that the other layers of the plan leave to the filter.

    Returns
    -------
    Policy
    """
    landlock_abi = landlock.abi() if plan.has(LANDLOCK) else 0
    hides_paths = plan.has(MOUNT_NAMESPACE) or landlock_abi >= landlock.ABI_PATH_SOCKETS
    hides_abstract = plan.has(NETWORK_NAMESPACE) or landlock_abi >= landlock.ABI_SCOPES
    return Policy(
        allow_network=plan.opens_sockets,
        hides_sockets=hides_paths and hides_abstract,
        shares_uid=plan.shares_uid,
        shares_files=plan.identity is None and not plan.has(MOUNT_NAMESPACE),
        brokers_sockets=plan.brokers_sockets,
    )


def apply(plan: SandboxPlan) -> int | None:
    """Install the filter for all threads of the process, for good.

    Returns
    -------
    int or None
        For a plan that brokers sockets the descriptor that goes to the broker; the caller closes it.

    Raises
    ------
    SandboxError
        The architecture is unknown, no_new_privs is not set, or Linux has no seccomp filters.
    """
    policy = policy_of(plan)
    return _install(program(policy), with_listener=policy.brokers_sockets)


def seal(plan: SandboxPlan) -> None:
    """Refuse new unix sockets where connect is open and nothing hides those of the host; for good.

    Call it when the kernel has bound its own and before anything of a job runs.

    Raises
    ------
    SandboxError
        Linux refused the filter.
    """
    policy = policy_of(plan)
    if not plan.has(SECCOMP) or policy.hides_sockets or not policy.allow_connect:
        return
    _install(assemble(seccomp_rules.sealing_rules()))


def _install(filter_program: bytes, *, with_listener: bool = False) -> int | None:
    deadline = time.monotonic() + _MEMORY_SECONDS
    while True:
        try:
            return syscalls.seccomp_filter(filter_program, with_listener=with_listener)
        except OSError as error:
            if error.errno != _ENOTSUPP:
                raise SandboxError(SECCOMP, str(error)) from error
            if time.monotonic() > deadline:
                raise SandboxError(SECCOMP, NO_MEMORY) from error
        time.sleep(_PAUSE_SECONDS)


@lru_cache(maxsize=8)
def program(policy: Policy, machine: str = syscalls.MACHINE) -> bytes:
    """Return the filter of a policy, as `assemble` makes it."""
    return assemble(seccomp_rules.rules_of(policy), machine)


def assemble(rules: Iterable[Rule], machine: str = syscalls.MACHINE) -> bytes:
    """Return the filter that runs the rule of each call and allows all calls without one.

    Parameters
    ----------
    rules : iterable of Rule
        In the order in which a call is compared with them.
    machine : str
        The architecture, as `platform.machine` names it.

    Returns
    -------
    bytes
        Instructions, see `kernel_spec.linux.bpf.assemble`.

    Raises
    ------
    SandboxError
        The architecture is neither x86_64 nor aarch64.
    """
    if machine not in _AUDIT_ARCH:
        raise SandboxError(SECCOMP, f"system call numbers of {machine} are not known here")
    code = _refuse_foreign_tables(machine)
    column = 0 if machine == "x86_64" else 1
    for rule in rules:
        numbers = sorted(number for name in rule.names if (number := NUMBERS[name][column]) is not None)
        if numbers:
            code += bpf.if_one_of(numbers, rule.block)
    return bpf.assemble([*code, bpf.end(ALLOW)])


def _refuse_foreign_tables(machine: str) -> bpf.Block:
    """Refuse calls by int 0x80 and x32, which have other numbers, and load the number of the call."""
    absent = seccomp_rules.refuse((), errno.ENOSYS).block
    code = [
        bpf.load(_ARCHITECTURE),
        *bpf.unless_equal(_AUDIT_ARCH[machine], absent),
        bpf.load(_NUMBER),
    ]
    return code + bpf.if_at_least(_X32_BIT, absent) if machine == "x86_64" else code
