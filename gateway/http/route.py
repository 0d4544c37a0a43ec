"""A route: its handler, and all that the API description says about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.http.base_handler.handler import BaseHandler
from gateway.http.schemas.responses import ResponseModel
from gateway.http.schemas.validation import RequestModel

#: The models of a JSON object, the media types of another body, or None without a body.
Answer = tuple[type[ResponseModel], ...] | tuple[str, ...] | type[ResponseModel] | None


@dataclass(frozen=True, slots=True)
class Route:
    """One path with one method.

    Attributes
    ----------
    path : str
        As in an API description, with ``{name}`` for a parameter.
    responses : dict
        Status to its response.
    query : dict
        Name of each query parameter to its description.
    refusals : tuple of int
        Statuses of refusals, all with `ErrorResponse`.
    """

    method: str
    path: str
    handler: type[BaseHandler]
    summary: str
    responses: dict[int, Answer]
    request: type[RequestModel] | None = None
    is_multipart: bool = False
    query: dict[str, str] = field(default_factory=dict)
    refusals: tuple[int, ...] = ()
