"""The whole failure vocabulary: what can go wrong, under which stable code, with which HTTP status.

Two branches. A *refusal* is raised while a request is looked at; nothing ran.  A *failure* is the
verdict on a job that was accepted; it is a value, not an exception, because a failed job is a normal result.

    GatewayError
    ├── BadRequest            400 bad_request             the request itself is wrong; names the field
    ├── Unauthorized          401 unauthorized
    ├── Forbidden             403 forbidden               a web page's request to a gateway without a token
    ├── NotFound              404 not_found
    ├── MethodNotAllowed      405 method_not_allowed
    ├── Conflict              409 conflict                the id is running now
    ├── TooLarge              413 too_large
    ├── UnsupportedMediaType  415 unsupported_media_type
    ├── QueueFull             503 queue_full              retryable, carries the queue's size
    ├── QueueTimeout          504 queue_timeout           retryable
    ├── ShuttingDown          503 shutting_down           retryable
    ├── ConfigurationError    –   configuration           refused at start, says which setting to change
    └── JobFailed             –   (a FailureCode)         ends a job from inside the gateway

`FAILURES` lists the verdicts.  The codes are public: callers switch on them, so they never change meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

EXIT_CODE_KILLED = -1
"""What the first public runner reported for time-out and cancel; Metabase shows it as it is."""


class GatewayError(Exception):
    """A request that cannot be served; its text is written for the caller.

    Parameters
    ----------
    message : str
        What is wrong, where, and what to do.
    **details
        More members of the JSON error body, for example ``queue_size``.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    advice: ClassVar[str] = "Look at the gateway's log; this is a fault worth reporting."

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def body(self) -> dict[str, Any]:
        """Return the JSON error body: ``error``, ``code``, ``retryable`` and the details."""
        return {"error": self.message, "code": self.code, "retryable": self.retryable, **self.details}


class BadRequest(GatewayError):
    """The request is wrong in itself; sent again unchanged it fails again."""

    status, code = 400, "bad_request"
    advice = "Mend the field that the answer names."


class Unauthorized(GatewayError):
    """No token, or not the right one."""

    status, code = 401, "unauthorized"
    advice = "Send the token that the gateway was started with: `Authorization: Bearer TOKEN`."


class Forbidden(GatewayError):
    """A browser sends this for some web page, and no token proves that its user wants it."""

    status, code = 403, "forbidden"
    advice = "Call localhost or an IP address, not from a web page; or set AUTH_TOKEN."


class NotFound(GatewayError):
    """No such route, or nothing is known under this id."""

    status, code = 404, "not_found"
    advice = "Look at /openapi.json for routes; an id is known for LOG_KEEP seconds after its job."


class MethodNotAllowed(GatewayError):
    """The route exists but not with this method."""

    status, code = 405, "method_not_allowed"
    advice = "Use a method that the header Allow names."


class Conflict(GatewayError):
    """A job with this id is queued or running now."""

    status, code = 409, "conflict"
    advice = "Wait for the end of that job, cancel it, or send another id."


class TooLarge(GatewayError):
    """The body is larger than the configured limit."""

    status, code = 413, "too_large"
    advice = "Send less, or raise MAX_BODY_BYTES or MAX_UPLOAD_BYTES."


class UnsupportedMediaType(GatewayError):
    """The body is of a type that the route does not take."""

    status, code = 415, "unsupported_media_type"
    advice = "Send `Content-Type: application/json`, uncompressed."


class QueueFull(GatewayError):
    """Every place in the queue is taken; the answer comes at once so that the caller's time-out is not spent here."""

    status, code, retryable = 503, "queue_full", True
    advice = "Send it again after Retry-After, or raise SLOTS or QUEUE_LENGTH."


class QueueTimeout(GatewayError):
    """The job waited longer for a slot than the queue time-out allows."""

    status, code, retryable = 504, "queue_timeout", True
    advice = "Send it again later, or raise SLOTS or QUEUE_TIMEOUT."


class ShuttingDown(GatewayError):
    """The gateway drains: it finishes what runs and takes nothing new."""

    status, code, retryable = 503, "shutting_down", True
    advice = "Send it again when the gateway is up."


class ConfigurationError(GatewayError):
    """The gateway cannot start as configured; the text names the setting to change."""

    code = "configuration"
    advice = "Change the setting that the message names."


def refusal_kinds() -> tuple[type[GatewayError], ...]:
    """Return what a request to run a job can be refused with, `internal` (a fault of ours) last."""
    at_start_or_later = (ConfigurationError, QueueTimeout)
    kinds = [k for k in GatewayError.__subclasses__() if k.__module__ == __name__ and k not in at_start_or_later]
    return (*kinds, GatewayError)


class FailureCode(StrEnum):
    """Why a job that was accepted did not succeed."""

    USER_ERROR = "user_error"
    SYNTAX_ERROR = "syntax_error"
    INVALID_RETURN = "invalid_return"
    NO_TRANSFORM = "no_transform"
    MISSING_TABLE = "missing_table"
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    CPU_LIMIT = "cpu_limit"
    PROCESS_LIMIT = "process_limit"
    DESCRIPTOR_LIMIT = "descriptor_limit"
    FILE_SIZE_LIMIT = "file_size_limit"
    DISK_LIMIT = "disk_limit"
    KILLED = "killed"
    EXITED = "exited"
    CANCELLED = "cancelled"
    INPUT_UNAVAILABLE = "input_unavailable"
    INPUT_INVALID = "input_invalid"
    OUTPUT_INVALID = "output_invalid"
    OUTPUT_MISSING = "output_missing"
    OUTPUT_UPLOAD_FAILED = "output_upload_failed"
    KERNEL_START_FAILED = "kernel_start_failed"
    SANDBOX_FAILED = "sandbox_failed"
    SHUTTING_DOWN = "shutting_down"
    QUEUE_TIMEOUT = "queue_timeout"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class FailureKind:
    """What is fixed about one failure code.

    Attributes
    ----------
    status : int
        HTTP status of the answer to ``execute``.
    retryable : bool
        Whether the same request may succeed when sent again.
    exit_code : int
        Reported unless the job's own process gave one.
    in_log : bool
        Whether the shim's own text already stands last in the log. Where it does not, the gateway adds one stderr
        line, because Metabase shows the log and hides the error body.
    meaning, advice : str
        One sentence each, for the documentation's table of failures.
    """

    status: int
    retryable: bool
    exit_code: int
    in_log: bool
    meaning: str
    advice: str


def _kind(
    meaning: str, advice: str, *, in_log: bool = False, retryable: bool = False, exit_code: int = 1, status: int = 500
) -> FailureKind:
    return FailureKind(status, retryable, exit_code, in_log, meaning, advice)


FAILURES: dict[FailureCode, FailureKind] = {
    FailureCode.USER_ERROR: _kind(
        "The script or transform() raised an exception.", "Read the traceback; it starts at your own line.", in_log=True
    ),
    FailureCode.SYNTAX_ERROR: _kind(
        "The script or a library module is not valid Python.", "Mend the line that the log shows.", in_log=True
    ),
    FailureCode.INVALID_RETURN: _kind(
        "transform() returned something that is not a table.", "Return a data frame.", in_log=True
    ),
    FailureCode.NO_TRANSFORM: _kind(
        "The script defines no transform() function.",
        "Define one; its parameters name the tables it needs.",
        in_log=True,
    ),
    FailureCode.MISSING_TABLE: _kind(
        "transform() asks for a table that the request does not carry.",
        "Select the table as a source, or rename the parameter.",
        in_log=True,
    ),
    FailureCode.TIMEOUT: _kind(
        "The job ran longer than its time-out.",
        "Do less, or raise the timeout of the request.",
        exit_code=EXIT_CODE_KILLED,
    ),
    FailureCode.MEMORY_LIMIT: _kind(
        "The job needed more memory than its limit.",
        "Select fewer columns or rows, use a lazy frame, or raise the memory limit.",
        exit_code=137,
    ),
    FailureCode.CPU_LIMIT: _kind(
        "The job used more processor time than its limit.", "Do less, or raise the CPU limit.", exit_code=137
    ),
    FailureCode.PROCESS_LIMIT: _kind("The job started too many processes or threads.", "Start fewer."),
    FailureCode.DESCRIPTOR_LIMIT: _kind("The job opened too many files at once.", "Close files after use."),
    FailureCode.FILE_SIZE_LIMIT: _kind(
        "The job wrote a file larger than the limit.", "Write less, or raise the file size limit."
    ),
    FailureCode.DISK_LIMIT: _kind(
        "The job's directory grew beyond its quota.", "Write less, or raise the disk limit.", exit_code=137
    ),
    FailureCode.KILLED: _kind("The kernel process was ended by a signal.", "See which signal the message names."),
    FailureCode.EXITED: _kind(
        "The script ended its own process.", "Return from transform() instead of calling exit()."
    ),
    FailureCode.CANCELLED: _kind("The job was cancelled.", "Nothing to do.", exit_code=EXIT_CODE_KILLED),
    FailureCode.INPUT_UNAVAILABLE: _kind(
        "An input table could not be fetched.",
        "Check that the storage can be reached from the gateway and that the URL has not expired.",
        retryable=True,
    ),
    FailureCode.INPUT_INVALID: _kind(
        "An input table does not hold what its manifest says.", "Look at the table, line and column named.", in_log=True
    ),
    FailureCode.OUTPUT_INVALID: _kind(
        "The returned frame holds a value or column that cannot be written.",
        "Convert the column that the message names.",
        in_log=True,
    ),
    FailureCode.OUTPUT_MISSING: _kind(
        "The job claimed success, but its output was missing, not a regular file, or above the size limit.",
        "Do not touch the files beside the script.",
    ),
    FailureCode.OUTPUT_UPLOAD_FAILED: _kind(
        "The result could not be delivered.",
        "Check that the storage can be reached from the gateway and accepts the presigned URLs.",
        retryable=True,
    ),
    FailureCode.KERNEL_START_FAILED: _kind(
        "No kernel could be started.", "Look at the gateway's log and at `transform-gateway doctor`.", retryable=True
    ),
    FailureCode.SANDBOX_FAILED: _kind(
        "A layer of the sandbox could not be put on, so the job was not run.",
        "Look at `transform-gateway doctor`.",
        retryable=True,
    ),
    FailureCode.SHUTTING_DOWN: _kind(
        "The gateway was stopped while the job was waiting or running.",
        "Send it again.",
        retryable=True,
        exit_code=EXIT_CODE_KILLED,
        status=503,
    ),
    FailureCode.QUEUE_TIMEOUT: _kind(
        "The job waited longer for a slot than the queue time-out.",
        "Send it again later, or raise slots.",
        retryable=True,
        exit_code=EXIT_CODE_KILLED,
        status=504,
    ),
    FailureCode.INTERNAL: _kind(
        "The gateway itself failed.", "Look at the gateway's log; this is a fault worth reporting.", retryable=True
    ),
}


class JobFailed(Exception):
    """Ends a job from inside the gateway with a verdict.

    Parameters
    ----------
    code : FailureCode
    message : str
        The sentence for the user, with the limit that was hit.
    exit_code : int, optional
        The process's own exit code where it had one.
    """

    def __init__(self, code: FailureCode, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = FAILURES[code].exit_code if exit_code is None else exit_code
