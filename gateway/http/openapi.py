"""The API description (OpenAPI 3.1) and its page, made from the route table and the models that validate."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import responses
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway import __version__
from gateway.http.answers import ErrorAnswer
from gateway.http.docs import docs_page

if TYPE_CHECKING:
    from gateway.http.routes import Route

SCHEMA = "#/components/schemas/{model}"
INTRODUCTION = (
    "Runs Metabase's Python transforms. Metabase needs only `/v1/execute`, `/v1/logs`, `/v1/cancel` and `/v1/status`. "
    "A refusal (nothing ran) and a failure (the job ran) both carry `error` and a stable `code`. "
    "JSON bodies are UTF-8 without NaN or Infinity, and no object may have one key twice. "
    "Results: with `output_url` they are uploaded there; a request without any result URL has its result kept for a "
    "while under `/v1/results/{request_id}/`; result URLs without `output_url` are refused. "
    "Tables may come along in a multipart request: part `request` is the JSON object, parts `table:NAME` and "
    "`manifest:NAME` are files."
)
PARAMETERS = {
    "request_id": {"type": "string", "description": "The id of the job, as text."},
    "what": {"type": "string", "enum": ["output", "manifest", "events"]},
}


@dataclass(frozen=True, slots=True)
class Description:
    """The API description as it is sent."""

    openapi: bytes
    page: bytes


def describe(routes: Sequence[Route]) -> Description:
    """Return the description of `routes`; made once at start-up."""
    document = openapi(routes)
    return Description(json.dumps(document).encode(), docs_page(document).encode())


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI document."""
    models: dict[type[BaseModel], None] = {ErrorAnswer: None}
    for route in routes:
        if route.request is not None:
            models[route.request] = None
        models |= {answer: None for answer in route.answers.values() if not isinstance(answer, str)}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMA)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Transform Gateway", "version": __version__, "description": INTRODUCTION},
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method}_{re.sub('[^a-z0-9]+', '_', route.path).strip('_') or 'root'}",
        "security": [] if route.handler.is_open else [{"token": []}],
        "responses": {str(status): _response(status, answer) for status, answer in route.answers.items()},
    }
    for status in route.refusals:
        refusal = _response(status, ErrorAnswer)
        known = operation["responses"].get(str(status))
        if known is not None:
            either = [known["content"]["application/json"]["schema"], refusal["content"]["application/json"]["schema"]]
            refusal = {**known, "content": {"application/json": {"schema": {"anyOf": either}}}}
        operation["responses"][str(status)] = refusal
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in route.query.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        operation["requestBody"] = _request_body(route, route.request)
    return operation


def _request_body(route: Route, model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": SCHEMA.format(model=model.__name__)}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if route.is_multipart:
        files = {"type": "string", "format": "binary"}
        form = {
            "type": "object",
            "required": ["request"],
            "properties": {"request": schema},
            "additionalProperties": files,
        }
        content["multipart/form-data"] = {"schema": form}
    return {"required": True, "content": content}


def _response(status: int, answer: type[BaseModel] | str) -> dict[str, Any]:
    text = responses.get(status, str(status))
    if isinstance(answer, str):
        return {"description": text, "content": {answer: {}}}
    schema = {"$ref": SCHEMA.format(model=answer.__name__)}
    return {"description": text, "content": {"application/json": {"schema": schema}}}
