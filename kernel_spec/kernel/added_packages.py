"""Packages that the operator adds for jobs, in a directory that only kernels have on their path.

``STATE_DIR/packages/current`` is a link to one of the sets beside it. A set never changes: a change makes another set
and moves the link, so kernels that use the earlier one go on. The directory is the last place that imports look in, so
nothing in it can take the place of a module that the installation has.

The fork server may be root and imports modules of the set. So each directory on the way from the state directory must
belong to root or to this user, and nobody else may write to it.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

#: In the state directory.
PACKAGES_DIR = "packages"
#: The link, in that directory.
CURRENT_LINK = "current"


class UntrustedPackages(Exception):
    """The added packages are not used; the text says why."""


class MissingPackages(UntrustedPackages):
    """The set that the link names is not there."""


def current_set(state_dir: Path) -> Path | None:
    """Return the directory of the packages that are added now; None if there are none.

    Raises
    ------
    UntrustedPackages
        Another user could change what is in it.
    MissingPackages
        It was removed by hand.
    """
    packages_dir = (state_dir / PACKAGES_DIR).resolve()  # a gateway for one call has a link here
    try:
        name = os.readlink(packages_dir / CURRENT_LINK)  # noqa: PTH115 - Path would normalise the text
    except OSError:
        return None
    if "/" in name or name.startswith("."):
        raise UntrustedPackages(f"{packages_dir / CURRENT_LINK} leads elsewhere: {name}")
    for directory in (state_dir.resolve(), packages_dir.parent, packages_dir):
        _check_owner(directory)
    if not os.path.lexists(packages_dir / name):
        raise MissingPackages(f"{packages_dir / name} is missing; add them again (transform-gateway packages add)")
    _check_owner(packages_dir / name)
    return packages_dir / name


def _check_owner(directory: Path) -> None:
    try:
        status = directory.lstat()
    except OSError as error:
        raise UntrustedPackages(f"{directory}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedPackages(f"{directory} is not a directory")
    if status.st_uid not in (0, os.geteuid()):
        raise UntrustedPackages(f"{directory} belongs to user {status.st_uid}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedPackages(f"{directory} is writable for other users")


def usable_set(state_dir: Path) -> str:
    """Return the directory of the added packages as text; empty for none, or with a line on stderr if unusable."""
    try:
        found = current_set(state_dir)
    except UntrustedPackages as error:
        print(f"the added packages are not used: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return ""
    return "" if found is None else str(found)


def append_to_path(directory: str) -> None:
    """Make `directory` the last place that imports look in; does nothing for an empty text."""
    if directory:
        with suppress(ValueError):
            sys.path.remove(directory)
        sys.path.append(directory)
