"""What can go wrong inside a job, as exceptions that carry the stable code of the failure.

::

    ShimError
     ├─ InputInvalid     a table file does not hold what its manifest says
     ├─ OutputInvalid    the returned frame holds something that cannot be written
     ├─ InvalidReturn    transform() returned no frame
     ├─ NoTransform      the script has no transform() that can be called with tables
     └─ MissingTable     a parameter of transform() has neither a table nor a default

The message is a sentence for the person who wrote the transform.
"""

from __future__ import annotations

from decimal import Decimal

__all__ = [
    "InputInvalid",
    "InvalidReturn",
    "MissingTable",
    "NoTransform",
    "OutputInvalid",
    "ShimError",
    "cut",
    "shorten",
]

_SHOWN_CHARS = 80


def shorten(value: object) -> str:
    """Show a value in a message, cut to a length that a log line bears."""
    try:
        text = str(value) if type(value) is Decimal else repr(value)  # a number of a table's: 1.5 is what stands there
    except Exception as error:  # a value of the user's class may refuse to be shown
        text = f"<{type(value).__name__}, whose repr() raises {type(error).__name__}>"
    return cut(text)


def cut(text: str) -> str:
    """A piece of a file as it stands there, cut in the same way."""
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
        What is wrong, without a full stop.
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
        """The same that many lines further down."""
        line = None if self.line is None else self.line + lines
        return InputInvalid(self.table, self.problem, line=line, column=self.column)


class OutputInvalid(ShimError):
    """The returned frame cannot be written.

    Parameters
    ----------
    problem : str
        What is wrong, without a full stop.
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


class InvalidReturn(ShimError):
    """transform() returned something that is no frame."""

    code = "invalid_return"


class NoTransform(ShimError):
    """The script defines no transform() that can be called with tables."""

    code = "no_transform"


class MissingTable(ShimError):
    """A parameter of transform() has neither a table nor a default value."""

    code = "missing_table"
