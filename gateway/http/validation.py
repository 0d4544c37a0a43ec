"""The one place where a failed validation becomes a 400 that names the field and what was expected there."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gateway.errors import BadRequest
from gateway.http.body import kind_of
from gateway.settings import Settings

SHOWN_ERRORS = 3


class RequestModel(BaseModel):
    """What a caller sends: JSON types count, unknown members are ignored.

    ``EXPECTED`` says for each field, in words, what may stand there; error messages and nothing else use it.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    EXPECTED: ClassVar[dict[str, str]] = {}


Model = TypeVar("Model", bound=RequestModel)


def validate(model: type[Model], value: dict[str, Any], settings: Settings) -> Model:
    """Return the validated request.

    Raises
    ------
    BadRequest
        With ``field`` in its details.
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
    expected = model.EXPECTED.get(name, "another value")
    if detail["type"] == "missing":
        return where, f"required, but missing; expected {expected}"
    return where, f"expected {expected}, not {kind_of(detail['input'])}"


def _where(model: type[RequestModel], detail: ErrorDetails) -> str:
    if not detail["loc"]:
        return ""
    name, *rest = detail["loc"]
    keys = rest[:1] if name in model.EXPECTED and _is_object(model, str(name)) else []
    return f"{name}[{str(keys[0])[:60]!r}]" if keys else str(name)


def _is_object(model: type[RequestModel], name: str) -> bool:
    """Tell a key of a mapping from the branch names that pydantic adds to the location within a union."""
    return "dict" in str(model.model_fields[name].annotation) if name in model.model_fields else False
