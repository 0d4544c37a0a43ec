"""How a transform is run from a notebook: options, checked where they are given."""

from __future__ import annotations

import dataclasses
import math
import re

from transform_shim.core.formats import FORMATS, DataFormat
from transform_shim.notebook.errors import NotebookError

__all__ = ["RunOptions", "check_format", "minutes", "seconds"]

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_DURATION = re.compile("".join(f"(?:{_NUMBER} *{unit} *)?" for unit in ("d", "h", "m(?:in)?(?!s)", "s", "ms")))
_UNIT_SECONDS = (86_400, 3600, 60, 1, 0.001)


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """How a transform is run; `profile` is whether its result is profiled, which takes time and memory of the job.

    Raises
    ------
    NotebookError
        A value makes no sense.
    """

    timeout: float | None = None
    output_format: DataFormat | None = None
    hold_minutes: float | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        if self.timeout is not None and not (_is_finite(self.timeout) and self.timeout > 0):
            raise NotebookError(f"the timeout must be seconds above 0, not {self.timeout!r}")
        if self.hold_minutes is not None and not (_is_finite(self.hold_minutes) and self.hold_minutes >= 0):
            raise NotebookError(f"a kernel is held for minutes from 0 up, not for {self.hold_minutes!r}")
        check_format(self.output_format)

    def with_defaults(self, other: RunOptions) -> RunOptions:
        """Return these, with the timeout and the format of `other` where these name none."""
        return dataclasses.replace(
            self,
            timeout=other.timeout if self.timeout is None else self.timeout,
            output_format=self.output_format or other.output_format,
        )


def check_format(name: object) -> None:
    """Check that `name` is None or the name of a format."""
    if name is not None and name not in FORMATS:
        raise NotebookError(f"{name!r} is not a format; these are: {', '.join(FORMATS)}")


def seconds(text: str) -> float:
    """Return the seconds of an option's duration; without a unit, the text is a number of seconds."""
    return _duration(text, 1)


def minutes(text: str) -> float:
    """Return the minutes of an option's duration; without a unit, the text is a number of minutes."""
    return _duration(text, 60) / 60


def _duration(text: str, plain_seconds: int) -> float:
    """Return the seconds of a duration as the settings of the gateway have it (`kernel_spec.protocol.quantities`)."""
    try:
        return float(text) * plain_seconds
    except ValueError:
        found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise ValueError(text)
    return sum(float(number) * unit for number, unit in zip(found.groups(), _UNIT_SECONDS, strict=True) if number)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
