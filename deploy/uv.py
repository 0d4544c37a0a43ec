"""Run uv with the package index settings of pip: `python deploy/uv.py pip sync requirements.lock`.

uv does not read pip.conf or the PIP_* variables, where many places name an index of their own. Each setting becomes the
variable of uv that means the same, unless that variable is set already. uv is the one installed beside this Python.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: setting of pip, variable of uv, and uv's separator between several values (None: there is only one)
SETTINGS = (
    ("index-url", "UV_DEFAULT_INDEX", None),
    ("extra-index-url", "UV_EXTRA_INDEX_URL", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("no-index", "UV_NO_INDEX", None),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", None),
    ("proxy", "ALL_PROXY", None),
    ("timeout", "UV_HTTP_TIMEOUT", None),
    ("default-timeout", "UV_HTTP_TIMEOUT", None),
)

#: where pip looks for a setting, the strongest first
SECTIONS = (":env:", "install", "global")

#: Several indexes are one pool for pip, in which the best version wins. `copy`, because a file that is linked into the
#: cache has the mode it was cached with, and kernels run as other users.
ALWAYS = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_LINK_MODE": "copy", "UV_COMPILE_BYTECODE": "1"}


def pip_settings() -> dict[str, str]:
    """Return the settings of pip by their full name, such as `global.index-url`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: str(ast.literal_eval(value)) for name, _, value in pairs if value}


def uv_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of uv that mean the same as settings of pip."""
    variables = dict(ALWAYS)
    for setting, variable, separator in SETTINGS:
        found = [settings[name] for section in SECTIONS if (name := f"{section}.{setting}") in settings]
        if found:
            variables.setdefault(variable, separator.join(found[0].split()) if separator else found[0])
    return variables


def main(arguments: list[str]) -> int:
    """Run uv and pass on what it says, without the list of all packages with which it ends."""
    command = [str(Path(sys.executable).with_name("uv")), *arguments]
    environment = uv_variables(pip_settings()) | os.environ
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # noqa: S101 - for mypy
        for line in process.stderr:
            if not line.startswith((" + ", " - ", " ~ ")):
                sys.stderr.write(line)
            if line.startswith("Installed ") and "UV_COMPILE_BYTECODE" in environment and "--quiet" not in arguments:
                sys.stderr.write("compiling their bytecode\n")  # minutes on a slow disk, without a word of uv
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
