"""Traits for sizes and durations, which accept ``1GiB`` and ``5m`` besides plain numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from traitlets import Float, HasTraits, Integer, TraitError

from kernel_spec.protocol.quantities import (
    DURATION_FORMS,
    SIZE_FORMS,
    bytes_text,
    parse_bytes,
    parse_seconds,
    seconds_text,
)

#: A hundred years; system calls refuse much more.
_MOST_SECONDS = 36_500 * 86_400


class Quantity:
    """Base of these traits: converts a text to a number before the validation.

    Attributes
    ----------
    forms : str
        The texts that are accepted.
    """

    forms: ClassVar[str]
    min: Any
    max: Any

    def from_string(self, s: str) -> Any:
        """Return the number that a text stands for."""
        raise NotImplementedError

    def text_of(self, value: Any) -> str:
        """Return the text of a value, with its unit."""
        raise NotImplementedError

    def validate(self, obj: HasTraits, value: Any) -> Any:
        """Return the number of a value, which may be a text in a configuration file."""
        if isinstance(value, str):
            try:
                value = self.from_string(value)
            except ValueError as error:
                raise TraitError(str(error)) from None
        # a configuration file may have a whole number where a duration is a float
        if isinstance(self, Float) and isinstance(value, int | float) and not value <= _MOST_SECONDS:
            raise TraitError(self.expected)
        base: Callable[[HasTraits, Any], Any] = super().validate  # type: ignore[misc]
        return base(obj, value)

    @property
    def expected(self) -> str:
        """The values that are accepted, with their bounds."""
        bounds = (("at least", self.min), ("at most", self.max))
        shown = [f"{word} {self.text_of(bound)}" for word, bound in bounds if bound and bound < sys.maxsize]
        return f"expected {self.forms}{', ' if shown else ''}{' and '.join(shown)}"


class Bytes(Quantity, Integer[int, int]):
    """A size in bytes."""

    forms = SIZE_FORMS

    def from_string(self, s: str) -> int:
        return parse_bytes(s)

    def text_of(self, value: Any) -> str:
        return bytes_text(value)


class WholeSeconds(Quantity, Integer[int, int]):
    """A duration in whole seconds."""

    forms = DURATION_FORMS.format("whole seconds")

    def from_string(self, s: str) -> int:
        seconds = parse_seconds(s)
        if not seconds.is_integer():
            raise ValueError(f"expected whole seconds, not {s!r}")
        return int(seconds)

    def text_of(self, value: Any) -> str:
        return seconds_text(value)


class Seconds(Quantity, Float[float, float]):
    """A duration in seconds."""

    forms = DURATION_FORMS.format("seconds")

    def from_string(self, s: str) -> float:
        return parse_seconds(s)

    def text_of(self, value: Any) -> str:
        return seconds_text(value)


class Minutes(Quantity, Float[float, float]):
    """A duration in minutes."""

    forms = DURATION_FORMS.format("minutes")

    def from_string(self, s: str) -> float:
        return parse_seconds(s, "minutes") / 60

    def text_of(self, value: Any) -> str:
        return seconds_text(60 * value)


def trait_of_limit(name: str) -> Callable[..., Integer[int, int]]:
    """Return the trait for a field of `kernel_spec.protocol.limits.Limits`, by the unit in its name."""
    kind: Callable[..., Integer[int, int]] = WholeSeconds if name.endswith("_seconds") else Integer
    if name.endswith("_bytes"):
        kind = Bytes
    return partial(kind, max=sys.maxsize)  # system calls take no more
