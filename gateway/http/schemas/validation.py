"""Validate requests; a failed validation becomes a 400 with the field and the values that it accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gateway.core.errors import BadRequest
from gateway.core.settings import Settings
from gateway.http.schemas.fields import Expected
from gateway.http.schemas.strict_json import words_for

SHOWN_ERRORS = 3
SHOWN_CHARACTERS = 40


class RequestModel(BaseModel):
    """The JSON object of a request: types are those of JSON, unknown members are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


Model = TypeVar("Model", bound=RequestModel)


def validate(model: type[Model], value: dict[str, Any], settings: Settings) -> Model:
    """Return the validated request.

    Raises
    ------
    BadRequest
        With the first wrong field as ``field``.
    """
    try:
        return model.model_validate(value, context=settings)
    except ValidationError as error:
        raise _explain(model, error) from None


def _explain(model: type[RequestModel], error: ValidationError) -> BadRequest:
    sentences: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        where, sentence = _sentence(model, detail)
        sentences.setdefault(where, sentence)
    shown = [f"{where}: {text}" if where else text for where, text in sentences.items()][:SHOWN_ERRORS]
    more = len(sentences) - len(shown)
    text = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return BadRequest(text, field=next(iter(sentences)))


def _sentence(model: type[RequestModel], detail: ErrorDetails) -> tuple[str, str]:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    where = _where(model, detail)
    if detail["type"] == "value_error":
        return where, str(detail["ctx"]["error"])
    expected = expected_words(model, name)
    if detail["type"] == "missing":
        return where, f"required, but missing; expected {expected}"
    found = words_for(detail["input"])
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        found = json.dumps(detail["input"][:SHOWN_CHARACTERS])  # a wrong choice; such fields hold no secret
    return where, f"expected {expected}, not {found}"


def expected_words(model: type[RequestModel], name: str) -> str:
    """Return the values that a field accepts, in words."""
    info = model.model_fields.get(name)
    found = [] if info is None else [*info.metadata, *_metadata(info.annotation)]
    return next((each.words for each in found if isinstance(each, Expected)), "another value")


def _metadata(annotation: Any) -> Iterator[Any]:
    """Yield the metadata within an optional field's annotation, that of outer types first."""
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _metadata(part)


def _where(model: type[RequestModel], detail: ErrorDetails) -> str:
    if not detail["loc"]:
        return ""
    name, *rest = detail["loc"]
    keys = rest[:1] if _is_object(model, str(name)) else []
    return f"{name}[{str(keys[0])[:60]!r}]" if keys else str(name)


def _is_object(model: type[RequestModel], name: str) -> bool:
    """Distinguish a key of a mapping from the branch names that pydantic adds to the location within a union."""
    return "dict" in str(model.model_fields[name].annotation) if name in model.model_fields else False
