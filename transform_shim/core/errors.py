"""The failures inside a job, as exceptions that carry the stable code of the failure.

::

    ShimError
     ├─ InputInvalid     a table file does not match its manifest
     ├─ OutputInvalid    the returned frame holds something that cannot be written
     ├─ OutputSchemaViolated  the returned frame breaks its output contract
     ├─ ContractInvalid  the output contract itself is wrong
     ├─ InvalidReturn    transform() returned no frame
     ├─ NoTransform      the script has no transform() that can be called with tables
     └─ MissingTable     a parameter of transform() has neither a table nor a default

    ResultFailed         the user's code raised its cause while its lazy result was computed
    NoType               no type holds all values of a column

The message is a sentence for the person who wrote the transform.
"""

from __future__ import annotations

from decimal import Decimal

__all__ = [
    "ContractInvalid",
    "InputInvalid",
    "InvalidReturn",
    "MissingTable",
    "NoTransform",
    "NoType",
    "OutputInvalid",
    "OutputSchemaViolated",
    "ResultFailed",
    "ShimError",
    "cut",
    "shorten",
]

_SHOWN_CHARS = 80


def shorten(value: object) -> str:
    """Show a value in a message, cut to a length that suits a line of the log."""
    try:
        text = str(value) if type(value) is Decimal else repr(value)  # a number of a table: the file has 1.5
    except Exception as error:  # a value of the user's class may refuse to be shown
        text = f"<{type(value).__name__}, whose repr() raises {type(error).__name__}>"
    return cut(text)


def cut(text: str) -> str:
    """Cut a piece of a file to the same length."""
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


class ShimError(Exception):
    """A failure with a stable code; ``str()`` is the user's sentence."""

    code = "shim_error"


class InputInvalid(ShimError):
    """A table file cannot be read as its manifest says.

    Parameters
    ----------
    table : str
        Alias of the table.
    problem : str
        The problem, without a full stop.
    line : int, optional
        Line of the file (or row of a columnar file), counted from 1.
    column : str, optional
        Name of the column, when it is known.
    """

    code = "input_invalid"

    def __init__(self, table: str, problem: str, *, line: int | None = None, column: str | None = None) -> None:
        self.table, self.problem, self.line, self.column = table, problem, line, column
        place = f"Table '{table}'"
        if line is not None:
            place += f", line {line}"
        if column is not None:
            place += f", column '{column}'"
        super().__init__(f"{place}: {problem}")

    def moved(self, lines: int) -> InputInvalid:
        """Return the same error that many lines further down."""
        line = None if self.line is None else self.line + lines
        return InputInvalid(self.table, self.problem, line=line, column=self.column)


class OutputInvalid(ShimError):
    """The returned frame cannot be written.

    Parameters
    ----------
    problem : str
        The problem, without a full stop.
    column : str, optional
        Name of the column.
    row : int, optional
        Position of the row in the frame, counted from 0 as ``iloc`` does.
    """

    code = "output_invalid"

    def __init__(self, problem: str, *, column: str | None = None, row: int | None = None) -> None:
        self.problem, self.column, self.row = problem, column, row
        place = "Output" if column is None else f"Output column {column!r}"
        if row is not None:
            place += f", row {row}"
        super().__init__(f"{place}: {problem}")


class OutputSchemaViolated(ShimError):
    """The returned frame breaks its output contract.

    Parameters
    ----------
    breaches : str
        Column, rule and first rows of each breach.
    """

    code = "output_schema_violated"

    def __init__(self, breaches: str) -> None:
        super().__init__(f"The output contract is violated: {breaches}")


class ContractInvalid(ShimError):
    """The output contract itself is wrong.

    Parameters
    ----------
    where : str
        The member of the contract.
    problem : str
        The problem, without a full stop.
    """

    code = "user_error"

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")


class InvalidReturn(ShimError):
    """transform() returned a value that is not a frame.

    Parameters
    ----------
    problem : str
        The problem, in Metabase's words.
    hint : str, optional
        The value to return instead, when it is known.
    """

    code = "invalid_return"

    def __init__(self, problem: str, *, hint: str = "") -> None:
        self.hint = hint
        super().__init__(problem)


class NoTransform(ShimError):
    """The script defines no transform() that can be called with tables."""

    code = "no_transform"


class MissingTable(ShimError):
    """A parameter of transform() has neither a table nor a default value."""

    code = "missing_table"


class NoType(ValueError):
    """No type of a frame holds all values of a column; the message says which, without table and column."""


class ResultFailed(Exception):
    """Marks its ``__cause__`` as raised by the user's code or query, which ran while the output was written."""
