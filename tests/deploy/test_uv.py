"""uv installs from where the operator told pip to install from."""

from __future__ import annotations

import functools
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.wheels import build_wheel

SCRIPT = Path(__file__).parents[2] / "deploy" / "uv.py"


@pytest.mark.parametrize(
    ("settings", "variables"),
    [
        ({"global.index-url": "https://mirror/simple"}, {"UV_DEFAULT_INDEX": "https://mirror/simple"}),
        ({"global.extra-index-url": "\nhttps://a\nhttps://b"}, {"UV_EXTRA_INDEX_URL": "https://a https://b"}),
        ({"global.find-links": "/one /two"}, {"UV_FIND_LINKS": "/one,/two"}),
        ({"global.no-index": "true"}, {"UV_NO_INDEX": "true"}),
        ({"global.trusted-host": "a b"}, {"UV_INSECURE_HOST": "a b"}),
        ({"global.cert": "/etc/ssl/own.pem"}, {"SSL_CERT_FILE": "/etc/ssl/own.pem"}),
        ({"global.proxy": "http://proxy:3128"}, {"ALL_PROXY": "http://proxy:3128"}),
        ({":env:.default-timeout": "180"}, {"UV_HTTP_TIMEOUT": "180"}),
        ({"global.index-url": "c", "install.index-url": "b", ":env:.index-url": "a"}, {"UV_DEFAULT_INDEX": "a"}),
        ({"global.index-url": "c", "install.index-url": "b"}, {"UV_DEFAULT_INDEX": "b"}),
        ({"freeze.index-url": "x", "global.quiet": "1"}, {}),
    ],
)
def test_each_setting_of_pip_has_its_variable(settings: dict[str, str], variables: dict[str, str]) -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["uv_variables"](settings) == script["ALWAYS"] | variables


@pytest.fixture
def package_index(tmp_path: Path) -> Iterator[str]:
    """Serve an index with one package, and return its URL."""
    directory = tmp_path / "index" / "tgprobe"
    wheel = build_wheel(directory, "tgprobe", {"tgprobe.py": "HERE = True\n"}).name
    (directory / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel}">{wheel}</a>')
    handler = functools.partial(_Quiet, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("where", ["pip.conf", "PIP_INDEX_URL", "UV_DEFAULT_INDEX"])
def test_packages_come_from_the_index_of_the_operator(package_index: str, tmp_path: Path, where: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": "*"}
    configured = package_index if where == "pip.conf" else "http://127.0.0.1:9/nothing-listens"
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {configured}\n")
    environment["PIP_CONFIG_FILE"] = str(tmp_path / "pip.conf")
    if where != "pip.conf":
        environment[where] = package_index
    target = tmp_path / "target"
    command = [sys.executable, str(SCRIPT), "pip", "install", "--no-deps", "--target", str(target), "tgprobe"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Installed 1 package.*\ncompiling their bytecode\nBytecode compiled", done.stderr, re.MULTILINE)
    assert " + tgprobe" not in done.stderr, "the list of packages is left out"
    assert (target / "tgprobe.py").stat().st_mode & 0o444 == 0o444
    assert list(target.glob("__pycache__/tgprobe.*.pyc")), "bytecode is compiled: kernels cannot write it"


def test_failure_of_uv_is_the_exit_status(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "pip", "sync", "--offline", str(tmp_path / "missing.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "missing.txt" in done.stderr
