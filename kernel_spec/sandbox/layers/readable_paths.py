"""Paths that a job may read and execute: its Python, the system's programs and libraries, a few files of /etc."""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_ETC: Final = (
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/locale.conf", "/etc/default/locale"),
    *(
        "/etc/passwd",
        "/etc/group",
        "/etc/nsswitch.conf",
        "/etc/alternatives",
        "/etc/fonts",
        "/etc/mime.types",
    ),
    # Debian's Python follows a link to it at every start, and prints an error if the link is broken
    f"/etc/python{sys.version_info.major}.{sys.version_info.minor}",
)
_NETWORK: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols"),
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted"),
    *("/etc/ca-certificates",),
)
#: Libraries read these to size their pools; the rest of /proc and /sys names processes and devices.
_MACHINE: Final = ("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")

#: A prefix that is one of these would open far more than an interpreter.
_TOO_WIDE: Final = frozenset({"/", "/root", "/home", "/tmp", "/var", "/etc", "/run", "/opt", "/srv"})  # noqa: S108


def default_read_only_paths(
    *,
    packages: Iterable[str] = ("kernel_spec", "transform_shim"),
    allow_network: bool = False,
) -> tuple[str, ...]:
    """Return the paths that exist and that every job may read and execute.

    Parameters
    ----------
    packages : iterable of str
        Packages of ours, found without importing them; in a source checkout only the package's own directory is opened,
        never the checkout.
    allow_network : bool
        Add the files that the resolver and TLS read.
    """
    wanted = [*_SYSTEM, *_ETC, *_MACHINE, *_interpreter(), *_package_dirs(packages)]
    if allow_network:
        wanted += _NETWORK
    return tuple(dict.fromkeys(path for path in map(os.path.normpath, wanted) if os.path.lexists(path)))


def path_above(directory: str) -> str | None:
    """Return the path that every job may read and in which a directory lies, if there is one.

    Parameters
    ----------
    directory : str
        An absolute path; it need not exist.

    Returns
    -------
    str or None
        As `default_read_only_paths` has it.
    """
    real = os.path.realpath(directory)
    return next((path for path in default_read_only_paths() if is_beneath(real, os.path.realpath(path))), None)


def _interpreter() -> Iterator[str]:
    """Yield the prefixes, the site directories and every link between the executable's name and its file."""
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        if prefix not in _TOO_WIDE:
            yield prefix
    candidates = [*site.getsitepackages(), *sys.path]
    for directory in candidates:
        if Path(directory).name in ("site-packages", "dist-packages") or directory in site.getsitepackages():
            yield directory
    yield sys.executable
    yield os.path.realpath(sys.executable)


def _package_dirs(packages: Iterable[str]) -> Iterator[str]:
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is not None:
            yield from spec.submodule_search_locations or ()


def links_to(path: str) -> tuple[list[tuple[str, str]], str]:
    """Return the symbolic links met on the way to `path`, as (place, target text), and where the way ends.

    Raises
    ------
    OSError
        A link is part of a loop (ELOOP) or a directory cannot be searched.
    """
    links: list[tuple[str, str]] = []
    place = "/"
    parts = [part for part in path.split("/") if part]
    while parts:
        part = parts.pop(0)
        if part in (".", ".."):
            place = str(Path(place).parent) if part == ".." else place
            continue
        here = f"{place.rstrip('/')}/{part}"
        if not Path(here).is_symlink():
            place = here
            continue
        if len(links) > 40:
            raise OSError(40, f"too many links on the way to {path}")
        target = os.readlink(here)  # noqa: PTH115 - Path would normalise the text
        links.append((here, target))
        if target.startswith("/"):
            place = "/"
        parts = [part for part in target.split("/") if part] + parts
    return links, place


def is_beneath(path: str, directory: str) -> bool:
    """Return whether `path` is `directory` or lies in it, by name."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


@lru_cache(maxsize=4)
def layout(read_only_paths: tuple[str, ...]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return the links to make and the real paths to bind so that all `read_only_paths` work in an empty root.

    Links and paths in a directory that is bound anyway are left out. Cached, because it makes some hundred system
    calls: the fork server calls it every half minute and its children inherit the answer.
    """
    links: dict[str, str] = {}
    real: dict[str, None] = {}
    for path in read_only_paths:
        if path.startswith(("/proc/", "/dev/")):
            continue  # the private root has its own
        try:
            found, end = links_to(path)
        except OSError:
            continue  # the gateway's own user may not read it either
        links.update(found)
        if os.path.lexists(end):
            real[end] = None
    binds = [path for path in real if not any(path != other and is_beneath(path, other) for other in real)]
    kept = [(place, to) for place, to in links.items() if not any(is_beneath(place, bound) for bound in binds)]
    return tuple(sorted(kept)), tuple(sorted(binds))
