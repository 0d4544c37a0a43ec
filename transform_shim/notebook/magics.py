"""The magics: thin layers over `transform_shim.notebook.functions`, with errors in plain words."""

# mypy: disable-error-code="no-untyped-call, untyped-decorator, union-attr"
# IPython's decorators have no annotations, and its magics have no shell before they are registered.

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from keyword import iskeyword
from types import ModuleType
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_cell_magic, line_magic, magics_class, needs_local_scope
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from transform_shim.core.formats import FORMATS
from transform_shim.notebook.errors import NotebookError
from transform_shim.notebook.options import RunOptions, minutes, seconds

__all__ = ["TransformMagics"]


@contextlib.contextmanager
def _in_plain_words() -> Iterator[None]:
    """Turn a mistake of the user's into one line; the cell still fails, so that a run of all cells stops."""
    try:
        yield
    except NotebookError as error:
        raise UsageError(str(error)) from None


@magics_class
class TransformMagics(Magics):
    """Magics for writing Metabase's Python transforms."""

    @line_magic
    @magic_arguments()
    @argument("--clear", action="store_true", help="forget all tables")
    def tables(self, line: str) -> Any:
        """Show the loaded tables: name, rows, columns with Metabase's types, and where each came from."""
        options = _parsed(self.tables, line)
        from transform_shim.notebook.functions import tables

        if options.clear:
            with _in_plain_words():
                for name in list(tables):
                    tables.drop(name)
            return
        from transform_shim.notebook.display import tables_html, tables_text

        loaded = [tables.info(name) for name in tables]
        if not loaded:
            print(repr(tables))  # noqa: T201
            return
        display({"text/plain": tables_text(loaded), "text/html": tables_html(loaded)}, raw=True)

    @needs_local_scope
    @line_magic
    @magic_arguments()
    @argument("name", nargs="?", help="name of the table, as the parameter of transform()")
    @argument(
        "source",
        nargs="*",
        help="a file, a URL, metabase:ID, metabase:NAME, or @VARIABLE for a data frame of this notebook",
    )
    @argument("--manifest", help="file or URL of the table's manifest, which has the columns' types")
    @argument("--format", choices=tuple(FORMATS), help="where neither name nor content of the file shows it")
    @argument("--drop", metavar="NAME", help="forget a table")
    def table(self, line: str, local_ns: dict[str, Any] | None = None) -> None:
        """Load a table under a name.

        Files are looked for where Jupyter runs the notebook, with your own rights: the
        notebook cannot open them. They are CSV, JSON lines, JSON arrays of objects,
        Parquet, Arrow (all of these also with .gz or .zst) and the first sheet of a
        workbook (.xlsx). A table of Metabase needs METABASE_URL and METABASE_API_KEY
        in the environment that Jupyter was started in.

        Examples::

            %table orders orders.parquet
            %table orders https://bucket.example/orders.jsonl?X-Amz-Signature=... --manifest orders.manifest.json
            %table orders metabase:123
            %table orders metabase:public.orders
            %table orders @df
            %table --drop orders
        """
        options = _parsed(self.table, line)
        from transform_shim.notebook.functions import drop_table

        with _in_plain_words():
            if options.drop:
                drop_table(options.drop)
                return
            source = [word for word in options.source if word != "="]
            if not options.name or len(source) != 1 or not _unquoted(source[0]):
                raise NotebookError("expected %table NAME SOURCE; quote a source that has blanks. See %table?")
            loaded = self._load(options, _unquoted(source[0]), local_ns or {})
        print(f'{loaded}; look at it: tables["{options.name}"]')  # noqa: T201

    def _load(self, options: Any, source: str, local_ns: dict[str, Any]) -> Any:
        from transform_shim.notebook.functions import table, tables

        if not source.startswith("@"):
            manifest = _unquoted(options.manifest) if options.manifest else None
            return table(options.name, source, manifest=manifest, format=options.format)
        names = {**self.shell.user_ns, **local_ns}
        if source[1:] not in names:
            raise NotebookError(f"there is no variable {source[1:]!r} in this notebook")
        return tables.take(options.name, names[source[1:]], origin=f"the variable {source[1:]}")

    @cell_magic
    @magic_arguments()
    @argument("--timeout", type=seconds, metavar="DURATION", help="such as 90 (seconds) or 5m; default: the gateway's")
    @argument("--here", action="store_true", help="run in this kernel, so that %%debug opens the failed frame")
    @argument(
        "--hold",
        type=minutes,
        metavar="DURATION",
        help="keep the kernel of a failed job, to attach to: 30 (minutes) or 1h",
    )
    @argument("--output-format", choices=tuple(FORMATS), help="format of the result; default: jsonl")
    @argument("-o", "--out", metavar="NAME", help="also give the result this name, as a pandas frame")
    def transform(self, line: str, cell: str) -> None:
        """Run the cell as a transform on the loaded tables, exactly as in production: a gateway runs it.

        The cell is the whole script; the parameters of its transform() are tables (see
        %tables). The output has the log as Metabase shows it, images and tables that
        the cell displayed, the returned data, the columns that Metabase would create,
        time by stage and peak memory; on failure the failure code of production.
        Afterwards you can call the cell's functions by hand, `transform` among them,
        and `last_run` is the result.
        """
        options = _parsed(self.transform, line)
        from transform_shim.notebook.log_printer import LogPrinter
        from transform_shim.notebook.session import session

        with _in_plain_words(), LogPrinter() as log:
            if options.out is not None and (not options.out.isidentifier() or iskeyword(options.out)):
                raise NotebookError(f"-o {options.out}: expected a name of Python")
            run_options = RunOptions(options.timeout, options.output_format, options.hold, profile=True)
            result = session.run(cell, run_options, here=options.here, on_event=log.take)
            log.finish(result.displays)
        if hint := _variable_hint(result.error or "", self.shell.user_ns):
            print(hint, file=sys.stderr)  # noqa: T201
        self._define(cell, result, options.here)
        if result.ok and options.out is not None:
            self.shell.user_ns[options.out] = result.frame
        self._show(result, options.out)

    @line_cell_magic
    @magic_arguments()
    @argument(
        "--timeout",
        type=seconds,
        metavar="DURATION",
        help="such as 90 or 5m; default: that of the %%%%transform, or the gateway's",
    )
    @argument(
        "--hold",
        type=minutes,
        metavar="DURATION",
        help="keep the kernel of a failed job, to attach to: 30 (minutes) or 1h",
    )
    @argument("--output-format", choices=tuple(FORMATS), help="default: that of the %%%%transform, or jsonl")
    def submit(self, line: str, cell: str | None = None) -> None:
        """Send the last %%transform, or this cell, with the loaded tables to the running gateway, and compare.

        The gateway is the one that TRANSFORM_GATEWAY_URL and AUTH_TOKEN name where
        Jupyter was started, else the one on this machine (STATE_DIR, HOST, PORT).
        """
        options = _parsed(self.submit, line)
        from transform_shim.notebook.log_printer import LogPrinter
        from transform_shim.notebook.session import session

        with _in_plain_words(), LogPrinter() as log:
            run_options = RunOptions(options.timeout, options.output_format, options.hold)
            result = session.submit(cell, run_options, log.take)
            log.finish(result.displays)
        self._show(result)

    @line_magic
    @magic_arguments()
    @argument("part", nargs="?", default="", help="part of the names to list; default: all")
    def packages(self, line: str) -> None:
        """List the packages that jobs can import, with their versions."""
        options = _parsed(self.packages, line)
        from transform_shim.notebook.packages import installed

        found = installed(options.part)
        for name, version in found:
            print(name, version)  # noqa: T201
        if not found:
            print(f"no package has {options.part!r} in its name")  # noqa: T201

    @cell_magic
    @magic_arguments()
    @argument("name", help="name of the module")
    def library(self, line: str, cell: str) -> None:
        """Make the cell a module that transforms and this notebook can import."""
        options = _parsed(self.library, line)
        from transform_shim.notebook.functions import library

        with _in_plain_words():
            module = library(options.name, cell)
        if module.__name__ in self.shell.user_ns:
            self.shell.user_ns[module.__name__] = module

    def _define(self, cell: str, result: Any, here: bool) -> None:
        from transform_shim.notebook.here import define_script, script_names
        from transform_shim.notebook.session import session

        names: dict[str, Any] = {}
        if here:
            names = script_names()
            # %debug must not open an exception that IPython has shown before
            self.shell.InteractiveTB.tb = None
        elif result.ok or "read" in result.stages or "transform" in result.stages:
            names = define_script(cell, session.library)
        self.shell.user_ns.update(names)

    def _show(self, result: Any, variable: str | None = None) -> None:
        self.shell.user_ns["last_run"] = result
        result.variable = variable or "last_run.frame"
        from transform_shim.notebook.display import run_html, run_text, show_displays

        sys.stderr.flush()
        sys.stdout.flush()
        show_displays(result)
        # of a failure, the log above has the message
        data = {"text/plain": run_text(result, has_log=True), "text/html": run_html(result, has_log=True)}
        display(data, raw=True)


def _variable_hint(error: str, variables: dict[str, Any]) -> str:
    """Say that a name which the transform lacks is one of the notebook; only the notebook knows that."""
    found = re.match(r"NameError: name '(\w+)' is not defined", error)
    if found is None or found[1] not in variables:
        return ""
    if isinstance(variables[found[1]], ModuleType):
        return f"HINT: {found[1]!r} is imported in the notebook, which a transform does not see: import it in this cell"
    remedy = "define it in this cell or in a module (%%library); data comes in as a table (%table)"
    return f"HINT: {found[1]!r} is a variable of the notebook, which a transform does not see: {remedy}"


def _parsed(magic: Any, line: str) -> Any:
    # an option is given in full: --out must not be read as --output-format
    magic.parser.allow_abbrev = False
    try:
        return parse_argstring(magic, line)
    except ValueError as error:  # of shlex, about a quote without its end
        raise UsageError(f"{line.strip()}: {str(error).lower()}") from None


def _unquoted(text: str) -> str:
    """Remove the quotes that IPython's splitting leaves."""
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
