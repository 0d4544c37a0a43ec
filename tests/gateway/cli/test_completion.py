"""Completion with Tab: typed into real shells."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.gateway.cli.commands import SECONDS, call, environment

CLEAR = "\x15"


class Place:
    """A directory with a script, and the command in the PATH of its environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        command = directory / "bin" / "transform-gateway"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway "$@"\n')
        command.chmod(0o755)
        variables = environment()
        self.variables = variables | {
            "PATH": f"{command.parent}:{variables['PATH']}",
            "PS1": "$ ",
            "TERM": "dumb",
            "HOME": str(directory),
        }
        (directory / "totals.py").write_text("")

    def shell(self, *command: str) -> pexpect.spawn:
        return pexpect.spawn(
            command[0],
            list(command[1:]),
            cwd=str(self.directory),
            env=self.variables,
            encoding="utf-8",
            timeout=SECONDS,
            dimensions=(24, 200),
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("completion"))


@pytest.fixture(scope="module")
def shell(place: Place) -> Iterator[pexpect.spawn]:
    bash = place.shell("bash", "--norc", "--noprofile")
    bash.sendline("source <(transform-gateway completion bash); echo read-$((1 + 1))")
    bash.expect_exact("read-2")
    yield bash
    bash.close(force=True)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("transform-gateway chec", "transform-gateway check "),
        ("transform-gateway --drain-s", "transform-gateway --drain-seconds"),
        ("transform-gateway run --prof", "transform-gateway run --profile "),
        ("transform-gateway run --format pa", "transform-gateway run --format parquet "),
        ("transform-gateway run tot", "transform-gateway run totals.py "),
        ("transform-gateway completion fi", "transform-gateway completion fish "),
        ("transform-gateway packages rem", "transform-gateway packages remove "),
        ("transform-gateway packages add --st", "transform-gateway packages add --state-dir "),
    ],
)
def test_tab_completes(line: str, completed: str, shell: pexpect.spawn) -> None:
    shell.send(f"{line}\t")
    shell.expect_exact(completed)
    shell.send(CLEAR)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_tab_completes_in_zsh(place: Place) -> None:
    zsh = place.shell("zsh", "-f")
    zsh.sendline(
        'autoload -U compinit; compinit -u -D; eval "$(transform-gateway completion zsh)"; echo read-$((1 + 1))'
    )
    zsh.expect_exact("read-2")
    for line, completed in (("transform-gateway chec", "check"), ("transform-gateway run --prof", "--profile")):
        zsh.send(f"{line}\t")
        zsh.expect_exact(completed)
        zsh.send(CLEAR)
    zsh.close(force=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "completed"), [("transform-gateway chec", "check"), ("transform-gateway run --prof", "--profile")]
)
def test_fish_completes(line: str, completed: str, place: Place) -> None:
    done = subprocess.run(
        ["fish", "--no-config", "-c", f'transform-gateway completion fish | source; complete -C "{line}"'],
        cwd=place.directory,
        env=place.variables,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert [each.split("\t")[0] for each in done.stdout.splitlines()] == [completed]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(name: str, tmp_path: Path) -> None:
    done = call(tmp_path, "completion", name)
    assert done.returncode == 0
    assert "transform-gateway" in done.stdout
    assert call(tmp_path, "completion", "csh").returncode == 2
