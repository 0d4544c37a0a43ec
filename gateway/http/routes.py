"""All routes in one table: it makes the application, and it makes the API description."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.http import answers
from gateway.http.answers import AnswerModel
from gateway.http.base import BaseHandler
from gateway.http.cancel import CancelHandler
from gateway.http.execute import ExecuteHandler
from gateway.http.first_form import FirstExecuteHandler, FirstLogsHandler
from gateway.http.held import ConsoleHandler, HeldHandler, ReleaseHandler
from gateway.http.logs import LogsHandler
from gateway.http.models import CancelRequest, ConsoleRequest, ExecuteRequest, FirstExecuteRequest, ReleaseRequest
from gateway.http.pages import DocsHandler, MetricsHandler, OpenApiHandler, RootHandler
from gateway.http.results import ResultsHandler
from gateway.http.status import StatusHandler
from gateway.http.validation import RequestModel

REFUSALS = (400, 401, 403, 404, 405, 409, 413, 415, 503)


@dataclass(frozen=True, slots=True)
class Route:
    """One path with one method.

    Attributes
    ----------
    path : str
        As in an API description, with ``{name}`` for what varies.
    answers : dict
        Status to the model of the answer, or to a media type where it is no JSON object.
    query : dict
        Name of each query parameter to its description.
    refusals : tuple of int
        Statuses of refusals, all with `ErrorAnswer`.
    """

    method: str
    path: str
    handler: type[BaseHandler]
    summary: str
    answers: dict[int, type[AnswerModel] | str]
    request: type[RequestModel] | None = None
    is_multipart: bool = False
    query: dict[str, str] = field(default_factory=dict)
    refusals: tuple[int, ...] = ()


_ID_QUERY = {"request_id": "The id of the job; without it, the one that runs, else waits, else ended last."}
_JOB: dict[int, type[AnswerModel] | str] = {
    200: answers.JobAnswer,
    202: answers.AcceptedAnswer,
    500: answers.JobAnswer,
    504: answers.JobAnswer,
}
_LOG_QUERY = _ID_QUERY | {"offset": "Number of lines already seen."}

ROUTES: tuple[Route, ...] = (
    Route("get", "/", RootHandler, "Where everything is", {200: answers.RootAnswer}),
    Route(
        "post",
        "/v1/execute",
        ExecuteHandler,
        "Run a job and wait for its end",
        {**_JOB},
        request=ExecuteRequest,
        is_multipart=True,
        refusals=(400, 401, 403, 409, 413, 415, 503),
    ),
    Route(
        "get",
        "/v1/logs",
        LogsHandler,
        "What a job has said so far",
        {200: answers.LogsAnswer},
        query=_LOG_QUERY,
        refusals=(400, 401, 403, 404),
    ),
    Route(
        "post",
        "/v1/cancel",
        CancelHandler,
        "End a job",
        {200: answers.CancelAnswer},
        request=CancelRequest,
        refusals=(400, 401, 403, 404, 413, 415),
    ),
    Route(
        "get",
        "/v1/status",
        StatusHandler,
        "How the gateway is; with an id, where a job stands",
        {200: answers.StatusAnswer, 503: answers.StatusAnswer},
        query=_ID_QUERY,
        refusals=(401, 403, 404),
    ),
    Route(
        "get",
        "/v1/results/{request_id}/{what}",
        ResultsHandler,
        "Fetch what was kept of a job: output, manifest or events",
        {200: "application/octet-stream"},
        refusals=(401, 403, 404),
    ),
    Route(
        "get",
        "/v1/held",
        HeldHandler,
        "The kernels that are held for inspection or as a console",
        {200: answers.HeldListAnswer},
        refusals=(401, 403),
    ),
    Route(
        "post",
        "/v1/release",
        ReleaseHandler,
        "End a held kernel",
        {200: answers.ReleasedAnswer},
        request=ReleaseRequest,
        refusals=(400, 401, 403, 404, 413, 415),
    ),
    Route(
        "post",
        "/v1/console",
        ConsoleHandler,
        "Hold a ready kernel for a console",
        {200: answers.HeldAnswer},
        request=ConsoleRequest,
        refusals=(400, 401, 403, 409, 413, 415, 500, 503),
    ),
    Route(
        "post",
        "/execute",
        FirstExecuteHandler,
        "Run a job, in the form of the first public runner",
        {200: answers.FirstAnswer, 500: answers.FirstAnswer, 504: answers.FirstAnswer},
        request=FirstExecuteRequest,
        refusals=(400, 401, 403, 409, 413, 415, 503),
    ),
    Route(
        "get",
        "/logs",
        FirstLogsHandler,
        "The same, of the first form",
        {200: answers.FirstLogsAnswer},
        refusals=(401, 403),
    ),
    Route(
        "post",
        "/cancel",
        CancelHandler,
        "The same, of the first form",
        {200: answers.CancelAnswer},
        request=CancelRequest,
        refusals=(400, 401, 403, 404, 413, 415),
    ),
    Route(
        "get",
        "/status",
        StatusHandler,
        "The same, of the first form",
        {200: answers.StatusAnswer, 503: answers.StatusAnswer},
        query=_ID_QUERY,
        refusals=(401, 403, 404),
    ),
    Route("get", "/openapi.json", OpenApiHandler, "This description", {200: "application/json"}),
    Route("get", "/docs", DocsHandler, "This description, to read", {200: "text/html"}),
    Route("get", "/metrics", MetricsHandler, "For Prometheus", {200: "text/plain"}),
)
