"""Find the tables that a job's transform() takes, from the text of the script.

A table that no parameter names is neither fetched nor able to fail the job. The kernel binds tables after it has run
the script, and only it knows for certain; so every doubt counts as a use, and the kernel fails a job that takes a table
which was not fetched after all.

The script is not trusted: nothing of it runs here, and Python's parser, which deep nesting can crash, gets one
signature of a bounded size.
"""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import re
import tokenize
import warnings

from gateway.core.job import InputTable, Job

__all__ = ["used_tables"]

#: Beyond these, every table is used: the time for looking at a script stays below some milliseconds.
CODE_CHARACTERS = 1 << 18
#: Length of a signature.
SIGNATURE_CHARACTERS = 4096
#: Occurrences of the word ``transform``.
MENTIONS = 100

_NAME = re.compile(r"\btransform\b", re.ASCII)
_DEFINITION = re.compile(r"^(?:async[ \t]+)?def[ \t]+(transform)[ \t]*\(", re.MULTILINE)
_IMPORT_ALL = re.compile(r"\bimport[ \t\\\n]*\*")
#: The text after a name that is called, and the word after a name in prose.
_CALL = re.compile(r"[ \t]*\(")
_PROSE = re.compile(r"[ \t]+([A-Za-z]+)")
_DEFINES = re.compile(r"\b(?:def|class)[ \t]+$")
_COMMENT = re.compile(r"^[ \t]*#")
_DECORATOR_OR_DEFINITION = re.compile(r"^(?:@|(?:async[ \t]+)?def\b|class\b)", re.MULTILINE)


def used_tables(job: Job) -> tuple[InputTable, ...]:
    """Return the tables that the job's transform() may take; all of them where that is in doubt.

    Parameters
    ----------
    job : Job
        With its script and all tables of the request.

    Returns
    -------
    tuple of InputTable
        In the order of the request.
    """
    names = _parameters(job.code) if job.tables and len(job.code) <= CODE_CHARACTERS else None
    return job.tables if names is None else tuple(table for table in job.tables if table.alias in names)


def _parameters(code: str) -> frozenset[str] | None:
    """Return the names of the parameters; None if every table may be used."""
    definition = _only_definition(code)
    if definition is None:
        return None
    signature = _signature(code[definition : definition + SIGNATURE_CHARACTERS])
    if signature is None or signature.kwarg is not None:
        return None
    return frozenset(parameter.arg for parameter in (*signature.args, *signature.kwonlyargs))


def _only_definition(code: str) -> int | None:
    """Return where the one definition of transform() begins, if no other line can bind the name."""
    definitions = list(itertools.islice(_DEFINITION.finditer(code), 2))
    mentions = list(itertools.islice(_NAME.finditer(code), MENTIONS + 1))
    if len(definitions) != 1 or len(mentions) > MENTIONS or _IMPORT_ALL.search(code) is not None:
        return None
    (definition,) = definitions
    before = _DECORATOR_OR_DEFINITION.findall(code, 0, definition.start())
    if before and before[-1] == "@":  # a decorator may change the parameters
        return None
    others = (mention for mention in mentions if mention.start() != definition.start(1))
    return definition.start() if all(_binds_nothing(code, mention) for mention in others) else None


def _binds_nothing(code: str, name: re.Match[str]) -> bool:
    """Return whether the name is called, or is a word of a comment or of prose."""
    line = code[code.rfind("\n", 0, name.start()) + 1 : name.start()]
    if _COMMENT.match(line):
        return True
    if _CALL.match(code, name.end()):
        return not _DEFINES.search(line)
    word = _PROSE.match(code, name.end())  # two names in a row are no Python
    return word is not None and not keyword.iskeyword(word[1]) and not keyword.issoftkeyword(word[1])


def _signature(text: str) -> ast.arguments | None:
    """Parse the signature at the beginning of a text."""
    header = _header(text)
    if header is None:
        return None
    try:
        with warnings.catch_warnings():  # of an escape in a default: the kernel shows it
            warnings.simplefilter("ignore")
            (function,) = ast.parse(f"{header} pass").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return function.args if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _header(text: str) -> str | None:
    """Return the text up to the colon that ends the signature."""
    depth = 0
    lines = text.splitlines(keepends=True)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.string in ("(", "[", "{") and token.type == tokenize.OP:
                depth += 1
            elif token.string in (")", "]", "}") and token.type == tokenize.OP:
                depth -= 1
            elif token.string == ":" and token.type == tokenize.OP and not depth:
                row, column = token.end
                return "".join(lines[: row - 1]) + lines[row - 1][:column]
    except (SyntaxError, tokenize.TokenError):
        return None
    return None
