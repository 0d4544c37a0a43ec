# ruff: noqa: PTH110
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kernel_spec.sandbox import default_read_only_paths
from kernel_spec.sandbox.layers import readable_paths


def test_python_and_the_system_are_readable_and_homes_and_secrets_are_not() -> None:
    found = default_read_only_paths()
    reached = [os.path.realpath(path) for path in found]
    for needed in (sys.executable, os.__file__, "/usr/share/zoneinfo"):
        if os.path.exists(needed):
            assert any(readable_paths.is_beneath(os.path.realpath(needed), path) for path in reached), needed
    for secret in (
        "/etc/shadow",
        "/root/.ssh",
        "/home",
        "/run/secrets",
        "/var/lib",
        "/proc/1/environ",
        "/etc/ssl/private",
    ):
        assert not any(readable_paths.is_beneath(secret, path) for path in found), secret
    assert len(set(found)) == len(found)


def test_a_source_checkout_is_not_opened_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ourpackage").mkdir()
    (tmp_path / "ourpackage" / "__init__.py").touch()
    (tmp_path / ".env").write_text("TOKEN=x")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = default_read_only_paths(packages=("ourpackage",))
    assert str(tmp_path / "ourpackage") in found
    assert str(tmp_path) not in found


def test_network_adds_names_and_certificates() -> None:
    added = set(default_read_only_paths(allow_network=True)) - set(default_read_only_paths())
    assert "/etc/hosts" in added or not os.path.exists("/etc/hosts")
    assert all(path.startswith("/etc/") for path in added)


def test_links_on_the_way_are_found_in_order(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("real")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    links, end = readable_paths.links_to(f"{tmp_path}/absolute/deep")
    assert links == [
        (f"{tmp_path}/absolute", f"{tmp_path}/relative"),
        (f"{tmp_path}/relative", "real"),
    ]
    assert end == f"{tmp_path}/real/deep"


def test_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="too many links"):
        readable_paths.links_to(f"{tmp_path}/loop/x")


def test_layout_omits_paths_inside_a_bound_directory(tmp_path: Path) -> None:
    (tmp_path / "prefix" / "lib").mkdir(parents=True)
    (tmp_path / "prefix" / "lib64").symlink_to("lib")
    (tmp_path / "alias").symlink_to("prefix")
    wanted = (f"{tmp_path}/alias/lib64", f"{tmp_path}/prefix", "/proc/cpuinfo", f"{tmp_path}/missing")
    links, binds = readable_paths.layout(wanted)
    assert binds == (f"{tmp_path}/prefix",)
    assert links == ((f"{tmp_path}/alias", "prefix"),)
