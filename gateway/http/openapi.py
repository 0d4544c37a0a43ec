"""The API description (OpenAPI 3.1) and its page, made from the route table and the models that validate.

Written by hand, because apispec would save some 60 lines and not know routes and models in one table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.core.errors import FailureCode
from gateway.core.job import JobState
from gateway.core.version import VERSION
from gateway.http.base_handler.context import Description
from gateway.http.openapi_page import docs_page
from gateway.http.route import Answer, Route
from gateway.http.schemas.history import MAX_LIMIT
from gateway.http.schemas.responses import ErrorResponse, ResponseModel
from gateway.jobs.store.history import SortKey

SCHEMA = "#/components/schemas/{model}"
INTRODUCTION = (
    "Runs Metabase's Python transforms. Metabase needs only `/v1/execute`, `/v1/logs`, `/v1/cancel` and `/v1/status`. "
    "A refusal (nothing ran) and a failure (the job ran) both have `error` and a stable `code`. "
    "JSON bodies are UTF-8 without NaN, Infinity and duplicate keys. "
    "With `output_url` the result is uploaded there. Without any result URL the gateway keeps the result for a "
    "while under `/v1/results/{request_id}/`. Result URLs without `output_url` are refused. "
    "Tables can be sent as files in a multipart request: part `request` is the JSON object, parts `table:NAME` and "
    "`manifest:NAME` are files."
)
PARAMETERS: dict[str, dict[str, Any]] = {
    "request_id": {"type": "string", "description": "The id of the job, as text."},
    "job_id": {"type": "string", "description": "The gateway's id of the job."},
    "name": {"type": "string"},
    "table": {"type": "string", "description": "Name of the table."},
    "what": {"type": "string", "enum": ["output", "manifest", "events"]},
}

MOMENT = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}]}

#: Query parameters that are more than a text.
QUERY_PARAMETERS: dict[str, dict[str, Any]] = {
    "offset": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
    "what": PARAMETERS["what"],
    "since": MOMENT,
    "until": MOMENT,
    "state": {"type": "string", "enum": [state.value for state in JobState]},
    "code": {"type": "string", "enum": ["ok", "failed", *FailureCode]},
    "min_duration": {"type": "number", "minimum": 0},
    "min_rows": {"type": "integer", "minimum": 0, "maximum": 10**18},
    "sort": {"type": "string", "enum": [f"{sign}{key}" for key in get_args(SortKey) for sign in ("", "-")]},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
}


def describe(routes: Sequence[Route]) -> Description:
    """Return the description of `routes` in the forms in which it is sent."""
    document = openapi(routes)
    return Description(json.dumps(document).encode(), docs_page(document).encode())


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI document of `routes`."""
    models: dict[type[BaseModel], None] = {ErrorResponse: None}
    for route in routes:
        if route.request is not None:
            models[route.request] = None
        models |= {model: None for answer in route.responses.values() for model in _models(answer)}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMA)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Transform Gateway", "version": VERSION, "description": INTRODUCTION},
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
        # the roles that a token must have, which OpenAPI 3.1 allows for every kind of security scheme
        "security": [] if route.handler.is_open else [{"token": [route.handler.kind_for(route.method.upper()).label]}],
        "responses": {str(status): _response(status, answer) for status, answer in _answers(route).items()},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": QUERY_PARAMETERS.get(name, {"type": "string"})}
        for name, text in route.query.items()
    ]
    if HTTPStatus.NOT_MODIFIED in route.responses:
        parameters.append({"name": "If-None-Match", "in": "header", "schema": {"type": "string"}})
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
            "patternProperties": {"^(table|manifest):.": files},
            "additionalProperties": False,
        }
        content["multipart/form-data"] = {"schema": form}
    return {"required": True, "content": content}


def _answers(route: Route) -> dict[int, Answer]:
    """Return the responses of a route with its refusals."""
    answers: dict[int, Answer] = {**route.responses}
    for status in (*route.refusals, 405):
        models: tuple[type[ResponseModel], ...] = (*_models(answers.get(status)), ErrorResponse)
        answers[status] = models
    return answers


def _models(answer: Answer) -> tuple[type[ResponseModel], ...]:
    each: tuple[object, ...] = answer if isinstance(answer, tuple) else (answer,)
    return tuple(model for model in each if isinstance(model, type) and issubclass(model, ResponseModel))


def _response(status: int, answer: Answer) -> dict[str, Any]:
    described = {"description": HTTPStatus(status).phrase}
    if answer is None:
        return described
    schemas = [{"$ref": SCHEMA.format(model=model.__name__)} for model in _models(answer)]
    if isinstance(answer, tuple) and not schemas:
        return described | {"content": {str(media_type): {} for media_type in answer}}
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return described | {"content": {"application/json": {"schema": schema}}}
