"""The base image: pulled where a registry answers, bootstrapped from Debian's packages where none does."""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.image.engine import Engine, EngineError

DEFAULT = "python:3.12-slim-bookworm"
BOOTSTRAPPED = "localhost/debian:bookworm-slim"
SUITE = "bookworm"
PULL_SECONDS = 300
BOOTSTRAP_SECONDS = 600

#: what Debian's own slim images leave out
NOT_IN_SLIM = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/lib/apt/lists",
    "var/cache/apt",
)


def base_image(engine: Engine) -> str:
    """Return the name of an image to build on; BASE in the environment names one.

    Raises
    ------
    EngineError
        None can be pulled, and none can be made here.
    """
    wanted = os.environ.get("BASE") or DEFAULT
    try:
        engine.call("pull", "--quiet", wanted, seconds=PULL_SECONDS)
    except EngineError as error:
        if os.environ.get("BASE"):
            raise
        print(f"   {DEFAULT} cannot be pulled here; bootstrapping Debian {SUITE} with its own Python instead")
        return _bootstrap(engine, why=str(error))
    return wanted


def _bootstrap(engine: Engine, why: str) -> str:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise EngineError(f"a base needs a registry, or root and debootstrap (Debian: apt install debootstrap): {why}")
    root = engine.scratch / "base"
    try:
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", SUITE, str(root), *_mirror()],
            capture_output=True,
            text=True,
            timeout=BOOTSTRAP_SECONDS,
            check=False,
        )
        if made.returncode != 0:
            raise EngineError(f"debootstrap: {made.stdout[-1000:]}{made.stderr[-1000:]}")
        for directory in NOT_IN_SLIM:
            shutil.rmtree(root / directory, ignore_errors=True)
            (root / directory).mkdir()
        excluded = "".join(f"path-exclude /{directory}/*\n" for directory in NOT_IN_SLIM[:4])
        (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(excluded)
        archive = engine.scratch / "base.tar"
        subprocess.run(["tar", "--create", "--file", str(archive), "--directory", str(root), "."], check=True)
        engine.call("import", str(archive), BOOTSTRAPPED, seconds=BOOTSTRAP_SECONDS)
        archive.unlink()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return BOOTSTRAPPED


def _mirror() -> list[str]:
    """Return the mirror that this machine's apt uses for the suite; none is debootstrap's own choice."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    targets = [line.split() for line in listed.stdout.splitlines()]
    return [target[2] for target in targets if len(target) == 3 and target[:2] == [SUITE, "main"]][:1]
