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
    # of a union, the branch of the other JSON type failed as well
    for where in [where for where in sentences if any(other.startswith(f"{where}[") for other in sentences)]:
        del sentences[where]
    shown = [f"{where}: {text}" if where else text for where, text in sentences.items()][:SHOWN_ERRORS]
    more = len(sentences) - len(shown)
    text = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return BadRequest(text, field=next(iter(sentences)).partition("[")[0])


def _sentence(model: type[RequestModel], detail: ErrorDetails) -> tuple[str, str]:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    where = _where(model, detail)
    if detail["type"] == "value_error":
        return where, str(detail["ctx"]["error"])
    expected = expected_words(model, name, of_member=where != name)
    if detail["type"] == "missing":
        return where, f"required, but missing; expected {expected}"
    found = words_for(detail["input"])
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        found = json.dumps(detail["input"][:SHOWN_CHARACTERS])  # a wrong choice; such fields hold no secret
    return where, f"expected {expected}, not {found}"


def expected_words(model: type[RequestModel], name: str, *, of_member: bool = False) -> str:
    """Return the values that a field accepts, or each member of an object in it, in words."""
    info = model.model_fields.get(name)
    found = [] if info is None else [*info.metadata, *_metadata(info.annotation)]
    words = [each.words for each in found if isinstance(each, Expected)] or ["another value"]
    return words[-1 if of_member else 0]


def _metadata(annotation: Any) -> Iterator[Any]:
    """Yield the metadata within an optional field's annotation, that of outer types first."""
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _metadata(part)


def _where(model: type[RequestModel], detail: ErrorDetails) -> str:
    if not detail["loc"]:
        return ""
    name, *rest = map(str, detail["loc"])
    field = model.model_fields.get(name)
    if field is None or "dict[" not in str(field.annotation):
        return name
    if rest and rest[0].startswith(("dict[", "literal[")):  # pydantic adds the branch of a union
        del rest[0]
    return f"{name}[{rest[0][:60]!r}]" if rest else name
