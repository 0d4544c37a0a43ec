"""no_new_privs and dumpable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.layers import dumpable, no_new_privs
from tests.kernel_spec.sandbox.children import PLAIN_USER, WORKSPACE_USER, become, fork, in_child, outcome
from tests.kernel_spec.sandbox.conftest import needs_root


@needs_root
def test_setuid_program_gives_nothing_after_no_new_privs(scratch_dir: str) -> None:
    program = Path(scratch_dir, "id")
    shutil.copy(shutil.which("id") or "/usr/bin/id", program)
    os.chown(program, WORKSPACE_USER.uid, WORKSPACE_USER.gid)
    program.chmod(0o4755)

    def child() -> list[str]:
        become(PLAIN_USER)
        run = lambda: subprocess.run([program, "-u"], capture_output=True, text=True).stdout.strip()  # noqa: E731
        before = run()
        no_new_privs.apply()
        return [before, run()]

    assert in_child(child) == [str(WORKSPACE_USER.uid), str(PLAIN_USER.uid)]


def test_no_new_privs_is_inherited_and_stays() -> None:
    def child() -> list[int]:
        no_new_privs.apply()
        inherited = in_child(lambda: syscalls.prctl(syscalls.PR_GET_NO_NEW_PRIVS))
        refused = outcome(lambda: syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 0))
        return [inherited, refused]

    assert in_child(child) == [1, "EINVAL"]


def test_process_of_the_same_user_is_closed_when_not_dumpable() -> None:
    def look_at(closed: bool) -> str:
        reader, writer = os.pipe()
        other = fork()
        if other == 0:
            if closed:
                dumpable.apply()
            os.write(writer, b"x")
            signal.pause()
        os.close(writer)
        os.read(reader, 1)
        found = outcome(Path(f"/proc/{other}/environ").read_bytes)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        os.close(reader)
        return found

    def child() -> list[str]:
        if os.geteuid() == 0:
            become(PLAIN_USER)
            # The change of user cleared it, as an exec would set it again.
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        return [look_at(closed=False), look_at(closed=True)]

    assert in_child(child) == ["worked", "EACCES"]
