"""`transform-gateway completion SHELL`, and the answers when the shell asks for completions.

The shell runs `transform-gateway` with the line so far at each Tab, as argcomplete arranges it. The candidates come
from the parser of the typed command.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from gateway.cli import common

SHELLS = ("bash", "zsh", "fish")

#: Where each shell reads the script at its start.
PLACES = {
    "bash": "~/.local/share/bash-completion/completions/transform-gateway",
    "zsh": "a directory in fpath, as the file _transform-gateway",
    "fish": "~/.config/fish/completions/transform-gateway.fish",
}


def main(name: str, arguments: Sequence[str]) -> int:
    """Print the script for a shell."""
    places = "; ".join(f"{shell}: {place}" for shell, place in PLACES.items())
    parser = common.parser(
        name, f"Print the script that completes commands and options, for the shell's place for such scripts: {places}."
    )
    parser.add_argument("shell", choices=SHELLS)
    options = parser.parse_args(arguments)
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["transform-gateway"], shell=options.shell) + "\n")
    return 0


def complete(commands: Mapping[str, tuple[str, str]]) -> NoReturn:
    """Answer a shell that asks for completions, with the parser of the command on its line.

    Parameters
    ----------
    commands : mapping
        Name of each command to its module and its summary.
    """
    line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="replace")
    words = line.split()
    is_in_command = len(words) > 2 or (len(words) == 2 and line.endswith(" "))
    if is_in_command and words[1] in commands:
        os.environ["_ARGCOMPLETE"] = "2"  # the word at which the command's own line begins
        # `packages add` has a parser of its own
        importlib.import_module(commands[words[1]][0]).main(words[1], words[2:3])
    else:
        _complete_command(commands, with_options=" -" in line)
    sys.exit(common.EXIT_USAGE)  # not reached: argcomplete ends the process


def _complete_command(commands: Mapping[str, tuple[str, str]], *, with_options: bool) -> None:
    import argcomplete

    parser = argparse.ArgumentParser("transform-gateway", add_help=False)
    if with_options:
        from gateway.process.app import TransformGatewayApp  # takes half a second

        for option in map(str, TransformGatewayApp.aliases):
            if len(option) > 1:
                parser.add_argument(f"--{option}")
    choices = parser.add_subparsers()
    for command, (_, summary) in commands.items():
        choices.add_parser(command, help=summary)
    argcomplete.autocomplete(parser)
