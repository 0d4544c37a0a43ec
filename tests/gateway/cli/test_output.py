"""The output and the arguments that a shell gives a command: closed, full, a terminal, in another encoding."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.cli.commands import SECONDS, call, environment
from tests.support.gateway_process import GatewayProcess


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["-m gateway --help-all", "-m gateway --version", "-m gateway run --help", "-m gateway help",
                                     "-m gateway completion bash", "-P -m gateway.process.daemon status"])  # fmt: skip
def test_reader_that_ends_and_a_full_disk_leave_no_traceback(command: str, unbuffered: str, tmp_path: Path) -> None:
    settings = environment() | {"PYTHONUNBUFFERED": unbuffered, "STATE_DIR": str(tmp_path)}
    for output, said in (
        ("| true", ""),
        (">/dev/full", "transform-gateway: standard output: No space left on device\n"),
    ):
        done = subprocess.run(["bash", "-c", f'"$0" {command} {output}', sys.executable], cwd=tmp_path, env=settings,
                              capture_output=True, text=True, timeout=SECONDS, check=False)  # fmt: skip
        assert done.stderr == said


@pytest.mark.parametrize("arguments", [("logs", b"\xff"), ("jobs", "--label", b"\xff"), ("status", b"\xff")])
def test_argument_that_is_not_utf_8_is_wrong_usage(
    arguments: tuple[str | bytes, ...], tmp_path: Path, running_gateway: GatewayProcess
) -> None:
    done = call(tmp_path, *map(os.fsdecode, arguments), gateway=running_gateway)
    assert (done.returncode, done.stderr) == (2, "transform-gateway: an argument has '\\udcff', which is not UTF-8\n")


#: Sets the title, clears the screen, fills the clipboard, begins a control sequence by one character, reverses a line.
EVIL = ("\x1b]0;title\x07", "\x1b[2J", "\x1b]52;c;AAAA\x07", "\x9b2J", "\u202e")
FLOODS = f"""
import sys
def transform():
    print('\x1b[31mred\x1b[0m', {"".join(EVIL)!r})
    print({"".join(EVIL)!r}, file=sys.stderr)
    raise ValueError({"".join(EVIL)!r})
"""


def on_terminal(directory: Path, *arguments: str, gateway: GatewayProcess) -> str:
    ours, theirs = pty.openpty()
    settings = environment(gateway) | {"TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-m", "gateway", *arguments], cwd=directory, env=settings, stdin=subprocess.DEVNULL,
                          stdout=theirs, stderr=theirs):  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 65536):
                shown += block
        except OSError:
            pass  # EIO: the command has ended
        finally:
            os.close(ours)
    return shown.decode()


def test_a_job_does_not_control_the_terminal_that_shows_its_log(
    tmp_path: Path, running_gateway: GatewayProcess
) -> None:
    (tmp_path / "floods.py").write_text(FLOODS)
    running_gateway.execute(FLOODS, "floods")
    for command in ("logs floods", "logs floods --follow", "status floods", "jobs", "run floods.py"):
        shown = on_terminal(tmp_path, *command.split(), gateway=running_gateway)
        assert [part for part in EVIL if part in shown] == [], command
        assert "ValueError" in shown, command
        assert ("\x1b[31mred\x1b[0m" in shown) == (command[:3] in ("log", "run")), "colours stay"
    assert "".join(EVIL) in call(tmp_path, "logs", "floods", gateway=running_gateway).stdout, (
        "a pipe gets what was printed"
    )
