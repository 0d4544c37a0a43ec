"""The kinds of value that requests are made of, each with the check that makes it safe further in."""

from __future__ import annotations

import keyword
import math
import sys
import unicodedata
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

from gateway.settings import Settings

MAX_REQUEST_ID_CHARACTERS = 200
MAX_URL_CHARACTERS = 16_384
MAX_MODULE_NAME_CHARACTERS = 100
RESERVED_MODULES = frozenset({"script", "transform_shim"})

EXPECTED_ID = f"a whole number within 64 bits, or a text of 1 to {MAX_REQUEST_ID_CHARACTERS} characters"
EXPECTED_URL = "an http:// or https:// URL"
EXPECTED_TIMEOUT = "a number of seconds above 0"
EXPECTED_MINUTES = "a number of minutes, 0 or more"
EXPECTED_CONSOLE_MINUTES = "a number of minutes above 0"


def _check_request_id(value: int | str) -> int | str:
    if isinstance(value, str):
        if not 1 <= len(value) <= MAX_REQUEST_ID_CHARACTERS:
            raise ValueError(f"expected {EXPECTED_ID}, not one of {len(value)} characters")
    elif not -(2**63) <= value < 2**63:
        raise ValueError(f"expected {EXPECTED_ID}, not a larger number")
    return value


def _check_timeout(value: float, info: ValidationInfo) -> float:
    if not isinstance(info.context, Settings):
        raise TypeError("the settings are needed to validate a time-out")
    limit = info.context.max_timeout_seconds
    if not math.isfinite(value) or not 0 < value <= limit:
        raise ValueError(f"expected {EXPECTED_TIMEOUT} and at most {limit:g}, not {value:g}")
    return value


def check_url(value: str) -> str:
    """Return `value` unchanged if it can be used exactly as given.

    A presigned URL dies with any change, so nothing is quoted, stripped or followed here.

    Raises
    ------
    ValueError
        Another scheme, no host, a port out of range, a user name, white space or anything that is not ASCII.
    """
    if len(value) > MAX_URL_CHARACTERS:
        raise ValueError(f"expected {EXPECTED_URL} of at most {MAX_URL_CHARACTERS} characters")
    if not all("!" <= character <= "~" for character in value):
        raise ValueError(f"expected {EXPECTED_URL} without white space, control or non-ASCII characters")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"expected {EXPECTED_URL}; its host or port is malformed") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"expected {EXPECTED_URL}, not another scheme")
    if not host:
        raise ValueError(f"expected {EXPECTED_URL} with a host")
    if "@" in parts.netloc:
        raise ValueError(f"expected {EXPECTED_URL} without a user name or password")
    return value


def module_name(name: str) -> str:
    """Return the module name that a library entry stands for: ``common.py`` and ``common`` are both ``common``.

    Raises
    ------
    ValueError
        The name could not be imported, would shadow the script or the standard library, or is no plain file name.
    """
    stem = name.removesuffix(".py")
    shown = repr(name[:60])
    if len(stem) > MAX_MODULE_NAME_CHARACTERS:
        raise ValueError(f"module names have at most {MAX_MODULE_NAME_CHARACTERS} characters")
    # import statements are normalised, file names are not: such a module could never be found
    if not stem.isidentifier() or unicodedata.normalize("NFKC", stem) != stem or keyword.iskeyword(stem):
        raise ValueError(
            f"{shown} is not a module name: expected a Python identifier, with or without .py, and no path"
        )
    if stem.startswith("__"):
        raise ValueError(f"{shown} is reserved by Python")
    if stem in RESERVED_MODULES:
        raise ValueError(f"{shown} is the name of a module that the job itself uses")
    if stem in sys.stdlib_module_names:
        raise ValueError(f"{shown} is the name of a module of Python's standard library; choose another")
    return stem


def _check_library(value: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    for name in value:
        stem = module_name(name)
        if stem in seen:
            raise ValueError(f"the module {stem!r} stands twice, with and without .py")
        seen.add(stem)
    return value


def _check_minutes(value: float, info: ValidationInfo) -> float:
    if not isinstance(info.context, Settings):
        raise TypeError("the settings are needed to validate a time")
    limit = info.context.max_timeout_seconds / 60
    if not math.isfinite(value) or not 0 <= value <= limit:
        raise ValueError(f"expected {EXPECTED_MINUTES} and at most {limit:g}, not {value:g}")
    return value


def _check_console_minutes(value: float, info: ValidationInfo) -> float:
    if value == 0:  # which is "do not hold" of a failed job, and of a console nothing
        raise ValueError(f"expected {EXPECTED_CONSOLE_MINUTES}, not 0")
    return _check_minutes(value, info)


RequestIdField = Annotated[int | str, AfterValidator(_check_request_id)]
TimeoutField = Annotated[float, AfterValidator(_check_timeout), Field(json_schema_extra={"exclusiveMinimum": 0})]
MinutesField = Annotated[float, AfterValidator(_check_minutes), Field(json_schema_extra={"minimum": 0})]
ConsoleMinutesField = Annotated[
    float, AfterValidator(_check_console_minutes), Field(json_schema_extra={"exclusiveMinimum": 0})
]
UrlField = Annotated[str, AfterValidator(check_url)]
LibraryField = Annotated[dict[str, str], AfterValidator(_check_library)]
