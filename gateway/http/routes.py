"""All routes in one table, from which the application and the API description are made."""

from __future__ import annotations

from gateway.core.formats import FORMATS
from gateway.http.handlers.bundle import BundledTableHandler, BundleHandler
from gateway.http.handlers.cancel import CancelHandler
from gateway.http.handlers.execute import ExecuteHandler, OutcomeHandler
from gateway.http.handlers.held import ConsoleHandler, HeldHandler, ReleaseHandler
from gateway.http.handlers.history import (
    HistoryCancelHandler,
    HistoryDisplaysHandler,
    HistoryHandler,
    HistoryHoldHandler,
    HistoryJobHandler,
    HistoryLogsHandler,
    HistoryResultHandler,
)
from gateway.http.handlers.legacy import LegacyExecuteHandler, LegacyLogsHandler
from gateway.http.handlers.logs import LogsHandler
from gateway.http.handlers.meta import (
    DocsHandler,
    OpenApiHandler,
    PackagesHandler,
    ReloadPackagesHandler,
)
from gateway.http.handlers.page import PageFileHandler, RootHandler
from gateway.http.handlers.pause import PauseHandler, ResumeHandler
from gateway.http.handlers.results import ResultsHandler
from gateway.http.handlers.status import StatusHandler
from gateway.http.handlers.stream import StreamHandler
from gateway.http.parcels import ParcelHandler
from gateway.http.probes import LiveHandler, MetricsHandler, ReadyHandler
from gateway.http.route import Answer, Route
from gateway.http.schemas import bundle, gateway_state, history, responses
from gateway.http.schemas.requests import (
    CancelRequest,
    ConsoleRequest,
    ExecuteRequest,
    HoldRequest,
    LegacyExecuteRequest,
    ReleaseRequest,
)

#: Prometheus' text format, and OpenMetrics for a scraper that asks for it.
METRICS_TYPES = ("text/plain", "application/openmetrics-text")

_ID_QUERY = {"request_id": "The id of the job; default: the job that runs, else the one that waits, else the last one."}
_JOB_QUERY = {"request_id": "The id of a job; without it, the state of the gateway."}
_JOB: dict[int, Answer] = {
    200: responses.JobResponse,
    202: responses.AcceptedResponse,
    500: responses.JobResponse,
    503: responses.JobResponse,
    504: responses.JobResponse,
}
_LOG_QUERY = _ID_QUERY | {"offset": "Number of lines already seen."}
_LOG: dict[int, Answer] = {200: responses.LogsResponse, 304: None}
_STATUS: dict[int, Answer] = {
    200: (gateway_state.StatusResponse, responses.JobStatusResponse),
    503: gateway_state.StatusResponse,
}
_KEPT: dict[int, Answer] = {200: (*sorted({facts.content_type for facts in FORMATS.values()}), "application/json")}

ROUTES: tuple[Route, ...] = (
    Route(
        "get", "/", RootHandler, "Links to the other routes; in a browser, the page", {200: gateway_state.RootResponse}
    ),
    Route(
        "get",
        "/page/{name}",
        PageFileHandler,
        "A file of the page",
        {200: ("text/css", "text/javascript", "image/svg+xml")},
        refusals=(404,),
    ),
    Route(
        "post",
        "/v1/execute",
        ExecuteHandler,
        "Run a job and wait until it is finished",
        {**_JOB},
        request=ExecuteRequest,
        is_multipart=True,
        refusals=(400, 401, 403, 409, 413, 415, 422, 503),
    ),
    Route(
        "get",
        "/v1/logs",
        LogsHandler,
        "Return the log of a job so far; 304 if it matches the `If-None-Match` of the request",
        _LOG,
        query=_LOG_QUERY,
        refusals=(400, 401, 403, 404),
    ),
    Route(
        "post",
        "/v1/cancel",
        CancelHandler,
        "Cancel a job",
        {200: responses.CancelResponse},
        request=CancelRequest,
        refusals=(400, 401, 403, 404, 413, 415),
    ),
    Route(
        "get",
        "/v1/status",
        StatusHandler,
        "Return the state of the gateway or, with an id, of a job",
        _STATUS,
        query=_JOB_QUERY,
        refusals=(400, 401, 403, 404),
    ),
    Route(
        "get",
        "/v1/results/{request_id}/{what}",
        ResultsHandler,
        "Return the kept output, manifest or events of a job",
        _KEPT,
        refusals=(400, 401, 403, 404),
    ),
    Route(
        "get",
        "/v1/jobs",
        HistoryHandler,
        "List the jobs that are live and those that are finished",
        {200: history.JobsResponse},
        query=history.PARAMETERS,
        refusals=(400, 401, 403),
    ),
    Route(
        "get",
        "/v1/jobs/{job_id}",
        HistoryJobHandler,
        "Return one job",
        {200: history.JobDetailResponse},
        refusals=(400, 401, 403, 404),
    ),
    Route(
        "delete",
        "/v1/jobs/{job_id}",
        HistoryJobHandler,
        "Remove a finished job, its log, its kept result and its bundle",
        {200: history.DeletedResponse},
        refusals=(400, 401, 403, 404, 409, 503),
    ),
    Route(
        "post",
        "/v1/jobs/{job_id}/cancel",
        HistoryCancelHandler,
        "Cancel a job by the gateway's own id",
        {200: responses.CancelResponse},
        refusals=(400, 401, 403, 404, 413),
    ),
    Route(
        "post",
        "/v1/jobs/{job_id}/hold",
        HistoryHoldHandler,
        "Cancel a job whose code runs, and hold its kernel",
        {200: responses.CancelResponse},
        request=HoldRequest,
        refusals=(400, 401, 403, 404, 409, 413, 415),
    ),
    Route(
        "get",
        "/v1/jobs/{job_id}/logs",
        HistoryLogsHandler,
        "Return the log of one job; 304 if it matches the `If-None-Match` of the request",
        _LOG,
        query={"offset": "Number of lines already seen."},
        refusals=(400, 401, 403, 404),
    ),
    Route(
        "get",
        "/v1/jobs/{job_id}/displays",
        HistoryDisplaysHandler,
        "Return the images and tables that one job displayed",
        {200: history.DisplaysResponse},
        refusals=(401, 403, 404),
    ),
    Route(
        "get",
        "/v1/jobs/{job_id}/result",
        HistoryResultHandler,
        "Return the kept result of one job",
        _KEPT,
        query={"what": "`output` (default), `manifest` or `events`."},
        refusals=(400, 401, 403, 404),
    ),
    Route(
        "get",
        "/v1/jobs/{job_id}/bundle",
        BundleHandler,
        "Return the bundle of a failed job, which KEEP_FAILED_JOBS keeps, without the data of its tables",
        {200: bundle.BundleResponse},
        refusals=(401, 403, 404),
    ),
    Route(
        "get",
        "/v1/jobs/{job_id}/bundle/{table}",
        BundledTableHandler,
        "Return the data of one table of a failed job, or its first rows, as `kept` in the bundle says",
        {200: tuple(sorted({facts.content_type for facts in FORMATS.values()}))},
        refusals=(401, 403, 404),
    ),
    Route(
        "get",
        "/v1/stream",
        StreamHandler,
        "Stream the states of all jobs, and the log of one, as they change",
        {200: ("text/event-stream",)},
        query={"job": "The job_id of the job whose log is streamed as well."},
        refusals=(400, 401, 403, 404, 503),
    ),
    Route(
        "get",
        "/v1/packages",
        PackagesHandler,
        "List the packages that jobs can import",
        {200: gateway_state.PackagesResponse},
        refusals=(401, 403),
    ),
    Route(
        "post",
        "/v1/packages/reload",
        ReloadPackagesHandler,
        "Apply added and removed packages to later jobs",
        {200: gateway_state.PackagesResponse},
        refusals=(401, 403, 413, 503),
    ),
    Route(
        "get",
        "/v1/held",
        HeldHandler,
        "List the kernels that are held for inspection or as a console",
        {200: responses.HeldListResponse},
        refusals=(401, 403),
    ),
    Route(
        "post",
        "/v1/release",
        ReleaseHandler,
        "Release a held kernel",
        {200: responses.ReleasedResponse},
        request=ReleaseRequest,
        refusals=(400, 401, 403, 404, 413, 415),
    ),
    Route(
        "post",
        "/v1/console",
        ConsoleHandler,
        "Hold a ready kernel for a console",
        {200: responses.HeldResponse},
        request=ConsoleRequest,
        refusals=(400, 401, 403, 409, 413, 415, 500, 503),
    ),
    Route(
        "post",
        "/v1/pause",
        PauseHandler,
        "Refuse new jobs until `/v1/resume`, also after a restart; accepted jobs go on",
        {200: gateway_state.PauseResponse},
        refusals=(401, 403, 413, 503),
    ),
    Route(
        "post",
        "/v1/resume",
        ResumeHandler,
        "Accept new jobs again",
        {200: gateway_state.PauseResponse},
        refusals=(401, 403, 413, 503),
    ),
    Route(
        "post",
        "/execute",
        LegacyExecuteHandler,
        "Run a job (legacy API)",
        {200: responses.LegacyJobResponse, 500: responses.LegacyJobResponse, 504: responses.LegacyJobResponse},
        request=LegacyExecuteRequest,
        refusals=(400, 401, 403, 409, 413, 415, 503),
    ),
    Route(
        "get",
        "/logs",
        LegacyLogsHandler,
        "Return the output of the running job (legacy API)",
        {200: responses.LegacyLogsResponse},
        refusals=(401, 403),
    ),
    Route(
        "post",
        "/cancel",
        CancelHandler,
        "Cancel a job (legacy API)",
        {200: responses.CancelResponse},
        request=CancelRequest,
        refusals=(400, 401, 403, 404, 413, 415),
    ),
    Route(
        "get",
        "/status",
        StatusHandler,
        "Return the state of the gateway or, with an id, of a job (legacy API)",
        _STATUS,
        query=_JOB_QUERY,
        refusals=(400, 401, 403, 404),
    ),
    Route("get", "/openapi.json", OpenApiHandler, "This API description", {200: ("application/json",)}),
    Route("get", "/docs", DocsHandler, "This API description as a page", {200: ("text/html",)}),
    Route("get", "/healthz/live", LiveHandler, "Probe: the process answers", {200: gateway_state.LiveResponse}),
    Route(
        "get",
        "/healthz/ready",
        ReadyHandler,
        "Probe: jobs are accepted",
        {200: gateway_state.ReadyResponse, 503: gateway_state.ReadyResponse},
    ),
    Route("get", "/metrics", MetricsHandler, "Metrics for Prometheus", {200: METRICS_TYPES}),
)

#: The routes of a member of a cluster that accepts jobs. They are for the other members, and not part of the API.
MEMBER_ROUTES = (
    Route(
        "get",
        "/v1/outcomes/{key}/{body}",
        OutcomeHandler,
        "Return the recorded outcome of the job with an Idempotency-Key",
        {200: responses.JobResponse},
        query={"inline": "1 for the result itself."},
        refusals=(404, 409, 422),
    ),
)

#: The routes of a member of a cluster whose address the others have. They are for these, and not part of the API.
PARCEL_ROUTES = (
    Route(
        "get",
        "/v1/parcels/{token}",
        ParcelHandler,
        "Send a file of a job to the host that runs it",
        {200: ("application/octet-stream",)},
        refusals=(404,),
    ),
    Route(
        "put",
        "/v1/parcels/{token}",
        ParcelHandler,
        "Receive a result from the host of a job",
        {200: None},
        refusals=(404, 413, 503),
    ),
)
