"""The packages that jobs can import, with their versions, and which of them a kernel has imported before its job."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kernel_spec.fork_server.preload import DEFAULT_MODULES


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package.

    Attributes
    ----------
    name, version : str
        As in the index.
    preloaded : bool
        Whether a kernel has imported it, or a part of it, before the job.
    added : bool
        Whether the operator has added it, so that only jobs have it.
    """

    name: str
    version: str
    preloaded: bool
    added: bool = False


def job_packages(modules: Collection[str] = DEFAULT_MODULES, added_dir: Path | None = None) -> list[Package]:
    """Return the packages of jobs, by name; reading them takes some tenths of a second.

    Parameters
    ----------
    modules : collection of str
        The modules that the fork server imports; empty without one.
    added_dir : Path, optional
        Directory of the packages that the operator has added.

    Returns
    -------
    list of Package
    """
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    found: dict[str, metadata.Distribution] = {}
    for each in metadata.distributions():  # the first of a name is the one that is imported
        found.setdefault(each.metadata["Name"], each)
    owners = metadata.packages_distributions() if tops else {}
    preloaded = {name for top in tops for name in owners.get(top, ())}
    packages = [Package(name, each.version, name in preloaded) for name, each in found.items()]
    for each in metadata.distributions(path=[] if added_dir is None else [str(added_dir)]):
        if each.metadata["Name"] not in found:
            packages.append(Package(each.metadata["Name"], each.version, bool(_modules_of(each) & tops), added=True))
    return sorted(packages, key=lambda package: package.name.lower())


def _modules_of(package: metadata.Distribution) -> set[str]:
    """Return the top-level modules of a package."""
    return {file.parts[0].partition(".")[0] for file in package.files or () if file.suffix in (".py", ".so")}
