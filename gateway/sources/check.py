"""What can be found in a transform without running it."""

from __future__ import annotations

import difflib
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gateway.sources.module import Finding, Module, Severity, imports, parse, relative_imports, undefined_names
from gateway.sources.signature import check_transform, parameters


@dataclass(frozen=True, slots=True)
class Transform:
    """A script with its library.

    Attributes
    ----------
    where : str
        How findings name the script.
    library : mapping
        Module name to how findings name it, and its source.
    beside : Path or None
        Directory in which a forgotten module may lie.
    elsewhere : mapping
        Names that are bound in other cells of the notebook, to where.
    """

    where: str
    source: str
    library: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    beside: Path | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, in the order of files and lines; ``needs`` are the tables that the transform asks for."""

    findings: tuple[Finding, ...]
    needs: tuple[str, ...]

    @property
    def has_errors(self) -> bool:
        """Whether it would fail."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def lacks_imports(self) -> bool:
        """Whether something is imported that the kernel does not have."""
        return any("does not have" in finding.message for finding in self.findings)


def check(transform: Transform, tables: Sequence[str] | None) -> Report:
    """Look at a transform; `tables` are the names of those it will get, None when they are not known."""
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
    return Report(tuple(findings), tuple(needs))


def _check_imports(module: Module, transform: Transform) -> Iterator[Finding]:
    for line in relative_imports(module):
        text = "an import with a dot: script and library are no package; import the module by its name"
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
            f"{name}.py lies beside {Path(where).name} but does not come along by itself: --library {beside / name}.py"
        )
    if beside is not None and (beside / name / "__init__.py").is_file():
        return f"{name}/ beside {Path(where).name} is a package, and a library consists of single modules"
    close = difflib.get_close_matches(name, importable_names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"imports {name}, which the kernel does not have{hint}"


def _check_names(module: Module, transform: Transform | None) -> Iterator[Finding]:
    for name, line in undefined_names(module).items():
        elsewhere = transform.elsewhere.get(name) if transform is not None else None
        hint = f"; it is bound in {elsewhere}, which is not part of the script" if elsewhere else ""
        yield Finding(module.where, line, "error", "user_error", f"the name '{name}' is not defined{hint}")


def _check_library_names(transform: Transform) -> Iterator[Finding]:
    if not transform.library:
        return
    from gateway.http.fields import module_name  # the gateway's own rule; imported here because it takes a while

    for name, (where, _) in transform.library.items():
        try:
            module_name(name)
        except ValueError as error:
            yield Finding(where, 1, "error", "bad_request", str(error))


@cache
def is_importable(name: str) -> bool:
    """Whether the kernel has a top-level module; kernels run with the Python and the packages of this command."""
    if name in sys.builtin_module_names or name in sys.stdlib_module_names:
        return True
    here = {"", ".", str(Path.cwd())}  # what lies in the directory of the caller is not there for a kernel
    path = [entry for entry in sys.path if entry not in here]
    return importlib.machinery.PathFinder.find_spec(name, path) is not None


@cache
def importable_names() -> Collection[str]:
    """Return the names of what is installed, beside the standard library."""
    ours = {"gateway", "kernel_spec", "transform_shim"}
    names = importlib.metadata.packages_distributions()
    return sorted(name for name in names if name.isidentifier() and not name.startswith("_") and name not in ours)
