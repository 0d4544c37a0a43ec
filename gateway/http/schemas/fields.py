"""Types of request fields, each with its validation and the accepted values in words."""

from __future__ import annotations

import keyword
import math
import sys
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from yarl import URL

from gateway.core.formats import FORMATS, DataFormat
from gateway.core.settings import Settings
from gateway.storage.objects.hosts import refusal
from gateway.storage.objects.target import is_visible_ascii

MAX_REQUEST_ID_CHARACTERS = 200
#: Each whole number below it has a float of its own; from here on two texts in JSON may be read as one float.
LEAST_INEXACT_FLOAT = 2**53
MAX_URL_CHARACTERS = 16_384
MAX_LABEL_CHARACTERS = 200
MAX_MODULE_NAME_CHARACTERS = 100
#: Packages that every kernel has loaded before its job, and the script itself. As with the standard library, Python
#: would return the loaded module, and a module of the request with such a name would be ignored or break the kernel.
# fmt: off
PRELOADED_MODULES = frozenset({
    "IPython", "comm", "cython_runtime", "dateutil", "ipykernel", "jupyter_client", "jupyter_core", "kernel_spec",
    "msgspec", "numpy", "orjson", "packaging", "pandas", "platformdirs", "polars", "pyarrow", "pygments", "pytz",
    "script", "sitecustomize", "six", "tornado", "traitlets", "transform_shim", "typing_extensions", "usercustomize",
    "zmq",
})
# fmt: on

EXPECTED_ID = f"a whole number within 64 bits, or a text of 1 to {MAX_REQUEST_ID_CHARACTERS} characters"
EXPECTED_LABEL = f"a text of 1 to {MAX_LABEL_CHARACTERS} printable characters"
EXPECTED_URL = "an http:// or https:// URL"
EXPECTED_SOURCE = "a URL, a file path or the id of a Metabase table"
EXPECTED_TIMEOUT = "a number of seconds above 0"
EXPECTED_MINUTES = "a number of minutes, 0 or more"
EXPECTED_CONSOLE_MINUTES = "a number of minutes above 0"
EXPECTED_FORMAT = " or ".join(", ".join(f'"{name}"' for name in FORMATS).rsplit(", ", 1))


@dataclass(frozen=True, slots=True)
class Expected:
    """The values that a field accepts, in words, for error messages only."""

    words: str


def whole_number(value: object) -> object:
    """Return the integer that a value of JSON is, or the value.

    7.0 and 7e0 are the integer 7: JSON has one type of numbers, JSON Schema goes by the value, and some writers of JSON
    know floats only.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < LEAST_INEXACT_FLOAT:
        return int(value)
    return value


def _check_request_id(value: int | str) -> int | str:
    if isinstance(value, str):
        if not 1 <= len(value) <= MAX_REQUEST_ID_CHARACTERS:
            raise ValueError(f"expected {EXPECTED_ID}, not one of {len(value)} characters")
    elif not -(2**63) <= value < 2**63:
        raise ValueError(f"expected {EXPECTED_ID}, not a larger number")
    return value


def _check_timeout(value: float, info: ValidationInfo) -> float:
    if not isinstance(info.context, Settings):
        raise TypeError("a timeout is validated by the settings, which are missing")
    limit = info.context.max_timeout_seconds
    if not math.isfinite(value) or not 0 < value <= limit:
        raise ValueError(f"expected {EXPECTED_TIMEOUT} and at most {limit:g}, not {value:g}")
    return value


def check_url(value: str) -> str:
    """Return `value` unchanged if it can be used exactly as given.

    Any change would make a presigned URL invalid, so nothing is quoted or stripped here.

    Raises
    ------
    ValueError
        The URL has another scheme, no host, an invalid port, a user name, white space or non-ASCII characters.
    """
    if len(value) > MAX_URL_CHARACTERS:
        raise ValueError(f"expected {EXPECTED_URL} of at most {MAX_URL_CHARACTERS} characters")
    if not is_visible_ascii(value):
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


def check_host(value: str, settings: Settings) -> str:
    """Return a checked URL unchanged if requests may go to its host.

    Raises
    ------
    ValueError
        The host is not one of ``storage_hosts``, or its address is never used.
    """
    reason = refusal(URL(value, encoded=True), settings.storage_hosts)
    if reason is not None:
        raise ValueError(reason)
    return value


def _check_host(value: str, info: ValidationInfo) -> str:
    if not isinstance(info.context, Settings):
        raise TypeError("the settings are needed to validate a URL")
    return check_host(value, info.context)


def module_name(name: str) -> str:
    """Return the module name of a library entry: ``common`` for ``common.py`` and ``common``.

    Raises
    ------
    ValueError
        The name cannot be imported, is the name of a module that jobs have already, or is not a plain file name.
    """
    stem = name.removesuffix(".py")
    shown = repr(name[:60])
    if len(stem) > MAX_MODULE_NAME_CHARACTERS:
        raise ValueError(f"module names have at most {MAX_MODULE_NAME_CHARACTERS} characters")
    # Python normalises names in import statements, but not file names: such a module could not be found
    if not stem.isidentifier() or unicodedata.normalize("NFKC", stem) != stem or keyword.iskeyword(stem):
        raise ValueError(
            f"{shown} is not a module name: expected a Python identifier, with or without .py, and no path"
        )
    if stem.startswith("__"):
        raise ValueError(f"{shown} is reserved by Python")
    if stem in PRELOADED_MODULES or stem in sys.stdlib_module_names:
        where = "Python's standard library" if stem in sys.stdlib_module_names else "the packages of every job"
        raise ValueError(f"{shown} is the name of a module of {where}, which an import would find; choose another")
    return stem


def _check_library(value: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    for name in value:
        stem = module_name(name)
        if stem in seen:
            raise ValueError(f"duplicate module {stem!r}, with and without .py")
        seen.add(stem)
    return value


def _check_minutes(value: float, info: ValidationInfo) -> float:
    if not isinstance(info.context, Settings):
        raise TypeError("a time is validated by the settings, which are missing")
    limit = info.context.max_timeout_seconds / 60
    if not math.isfinite(value) or not 0 <= value <= limit:
        raise ValueError(f"expected {EXPECTED_MINUTES} and at most {limit:g}, not {value:g}")
    return value


def _check_console_minutes(value: float, info: ValidationInfo) -> float:
    if value == 0:  # for a failed job 0 means "do not hold"; for a console it means nothing
        raise ValueError(f"expected {EXPECTED_CONSOLE_MINUTES}, not 0")
    return _check_minutes(value, info)


def _check_label(value: str) -> str:
    if not 1 <= len(value) <= MAX_LABEL_CHARACTERS or not value.isprintable():
        raise ValueError(f"expected {EXPECTED_LABEL}")
    return value


#: The kernel parses the members and reports errors in them, as for the script's own contract.
_OUTPUT_SCHEMA = {
    "type": "object",
    "required": ["columns"],
    "properties": {
        "columns": {
            "type": "object",
            "description": "Rules by column. The result may have more columns.",
            "additionalProperties": {
                "type": "object",
                "properties": {
                    "type": {"enum": ["integer", "number", "text", "boolean", "date", "datetime", "time"]},
                    "nullable": {"type": "boolean", "default": True},
                    "min": {"type": ["number", "string"], "description": "A number, or a date in ISO 8601."},
                    "max": {"type": ["number", "string"], "description": "A number, or a date in ISO 8601."},
                    "unique": {"type": "boolean", "default": False},
                },
            },
        }
    },
}

OutputSchemaField = Annotated[
    dict[str, Any],
    WithJsonSchema(_OUTPUT_SCHEMA),
    Expected('an object {"columns": {name: rules}}'),
]
LabelField = Annotated[
    str,
    AfterValidator(_check_label),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_LABEL_CHARACTERS}),
    Expected(EXPECTED_LABEL),
]
RequestIdField = Annotated[
    Annotated[int, Field(json_schema_extra={"minimum": -(2**63), "maximum": 2**63 - 1})]
    | Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": MAX_REQUEST_ID_CHARACTERS})],
    BeforeValidator(whole_number),
    AfterValidator(_check_request_id),
    Expected(EXPECTED_ID),
]
TimeoutField = Annotated[
    float,
    AfterValidator(_check_timeout),
    Field(json_schema_extra={"exclusiveMinimum": 0}),
    Expected(EXPECTED_TIMEOUT),
]
MinutesField = Annotated[
    float, AfterValidator(_check_minutes), Field(json_schema_extra={"minimum": 0}), Expected(EXPECTED_MINUTES)
]
ConsoleMinutesField = Annotated[
    float,
    AfterValidator(_check_console_minutes),
    Field(json_schema_extra={"exclusiveMinimum": 0}),
    Expected(EXPECTED_CONSOLE_MINUTES),
]
UrlField = Annotated[
    str,
    AfterValidator(check_url),
    AfterValidator(_check_host),
    Field(json_schema_extra={"format": "uri", "pattern": "^https?://", "maxLength": MAX_URL_CHARACTERS}),
    Expected(EXPECTED_URL),
]
UrlsField = Annotated[dict[str, UrlField], Expected(f"an object of table name to {EXPECTED_URL}")]
LibraryField = Annotated[
    dict[str, Annotated[str, Expected("a text: the module's source")]],
    AfterValidator(_check_library),
    Expected("an object of module name to source text"),
]
TableSourcesField = Annotated[
    dict[str, Annotated[str | int, BeforeValidator(whole_number), Expected(EXPECTED_SOURCE)]],
    Expected(f"an object of table name to {EXPECTED_SOURCE}"),
]
CodeField = Annotated[str, Expected("a text: the Python script that defines transform()")]
FormatField = Annotated[DataFormat, Expected(EXPECTED_FORMAT)]
FormatsField = Annotated[
    DataFormat | dict[str, FormatField], Expected(f"{EXPECTED_FORMAT}, or an object of table name to one of these")
]
