"""Find errors in a transform without running it."""

from __future__ import annotations

import contextlib
import difflib
import importlib.machinery
import importlib.metadata
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gateway.scripts.imports import Finding, Module, Severity, imports, parse, relative_imports, undefined_names
from gateway.scripts.signature import check_transform, parameters
from kernel_spec.kernel.added_packages import UntrustedPackages, current_set


@dataclass(frozen=True, slots=True)
class Transform:
    """A script with its library.

    Attributes
    ----------
    where : str
        Name of the script in findings.
    source : str
        Text of the script.
    library : mapping
        Module name to its name in findings and its source.
    beside : Path or None
        Directory of the script, which may have a module that is missing in the library.
    elsewhere : mapping
        Name that is bound in another cell of the notebook, to the name of that cell.
    """

    where: str
    source: str
    library: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    beside: Path | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings in the order of files and lines; ``needs`` has the names of the transform's tables."""

    findings: tuple[Finding, ...]
    needs: tuple[str, ...]

    @property
    def has_errors(self) -> bool:
        """Whether the transform would fail."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def lacks_imports(self) -> bool:
        """Whether a module is imported that is not installed for jobs."""
        return any("not installed" in finding.message for finding in self.findings)


def check(transform: Transform, tables: Sequence[str] | None) -> CheckReport:
    """Return the findings about a transform; `tables` are the names of its tables, None when they are unknown."""
    findings: list[Finding] = []
    script = parse(transform.where, transform.source)
    modules = [parse(where, source) for where, source in transform.library.values()]
    if isinstance(script, Module):
        findings += check_transform(script, tables)
    for module in (script, *modules):
        if isinstance(module, Finding):
            findings.append(module)
            continue
        findings += _check_imports(module, transform)
        findings += _check_names(module, transform if module is script else None)
    findings += _check_library_names(transform)
    order = {where: place for place, where in enumerate([transform.where, *(w for w, _ in transform.library.values())])}
    findings.sort(key=lambda finding: (order[finding.where], finding.line))
    needs = parameters(script) if isinstance(script, Module) else []
    return CheckReport(tuple(findings), tuple(needs))


def _check_imports(module: Module, transform: Transform) -> Iterator[Finding]:
    for line in relative_imports(module):
        text = "relative import: script and library are not a package; import the module by its name"
        yield Finding(module.where, line, "error", "user_error", text)
    for found in imports(module):
        if found.name in transform.library or is_importable(found.name):
            continue
        severity: Severity = "warning" if found.tolerated else "error"
        text = _missing_import(found.name, transform.beside, module.where)
        yield Finding(module.where, found.line, severity, "user_error", text)


def _missing_import(name: str, beside: Path | None, where: str) -> str:
    if beside is not None and (beside / f"{name}.py").is_file():
        return (
            f"{name}.py is in the directory of {Path(where).name} but not part of the library: add --library "
            f"{beside / name}.py"
        )
    if beside is not None and (beside / name / "__init__.py").is_file():
        return f"{name}/ in the directory of {Path(where).name} is a package, but a library has single modules only"
    close = difflib.get_close_matches(name, importable_names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"imports {name}, which is not installed for jobs{hint}"


def _check_names(module: Module, transform: Transform | None) -> Iterator[Finding]:
    for name, line in undefined_names(module).items():
        elsewhere = transform.elsewhere.get(name) if transform is not None else None
        hint = f"; it is defined in {elsewhere}, which is not part of the script" if elsewhere else ""
        yield Finding(module.where, line, "error", "user_error", f"the name '{name}' is not defined{hint}")


def _check_library_names(transform: Transform) -> Iterator[Finding]:
    if not transform.library:
        return
    from gateway.http.schemas.fields import (
        module_name,  # imported here because its import is slow
    )

    for name, (where, _) in transform.library.items():
        try:
            module_name(name)
        except ValueError as error:
            yield Finding(where, 1, "error", "bad_request", str(error))


@cache
def is_importable(name: str) -> bool:
    """Return whether a job can import a top-level module; jobs have the packages of this command."""
    if name in sys.builtin_module_names or name in sys.stdlib_module_names:
        return True
    here = {"", ".", str(Path.cwd())}  # a kernel does not see the current directory
    path = [entry for entry in sys.path if entry not in here]
    with contextlib.suppress(UntrustedPackages):  # which jobs do not have
        added = current_set(Path(os.environ.get("STATE_DIR") or ".state"))
        path += [] if added is None else [str(added)]
    return importlib.machinery.PathFinder.find_spec(name, path) is not None


@cache
def importable_names() -> Collection[str]:
    """Return the names of the installed top-level modules, without the standard library."""
    ours = {"gateway", "kernel_spec", "transform_shim"}
    names = importlib.metadata.packages_distributions()
    return sorted(name for name in names if name.isidentifier() and not name.startswith("_") and name not in ours)
