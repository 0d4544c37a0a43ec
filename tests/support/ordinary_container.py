"""``python -m tests.support.ordinary_container [--pod] COMMAND...``: run the gateway's command line as if in an ordinary container.

A container runtime takes away by default, and so does this: all but 14 capabilities, namespaces and mounts, and a
control group tree that can be written to. With ``--pod`` root as well, as Kubernetes' restricted profile asks for. Needs
root. The further measures of a runtime (its own filter of system calls, a masked /proc) restrict a job more and are
left out.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from gateway.cli import main
from kernel_spec.linux import syscalls
from kernel_spec.sandbox.layers import no_new_privs
from tests.kernel_spec.sandbox.children import PLAIN_USER, be_in_default_container, become

#: owner of what a gateway in a pod may write to
POD_UID = PLAIN_USER.uid


def enter(*, pod: bool) -> None:
    """Give up what there is not, for this process and its children."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_PRIVATE)
    for line in Path("/proc/mounts").read_text().splitlines():
        place = line.split()[1]
        if place.startswith("/sys/fs/cgroup"):
            subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    be_in_default_container()
    if pod:
        become(PLAIN_USER)
        no_new_privs.apply()
        # a process that changed its user is closed to its own /proc; one that a runtime starts is not
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    is_pod = arguments[:1] == ["--pod"]
    enter(pod=is_pod)
    os.chdir("/")
    sys.exit(main(arguments[is_pod:]))
