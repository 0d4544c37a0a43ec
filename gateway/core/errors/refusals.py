"""Refusals: the reasons for which a request is not served, each with its stable code and HTTP status.

GatewayError
├── BadRequest            400 bad_request             the request itself is wrong; names the field
├── Unauthorized          401 unauthorized
├── Forbidden             403 forbidden               a web page's request to a gateway without a token
├── InsufficientScope     403 insufficient_scope      the token is of a kind that does not permit this
├── NotFound              404 not_found
├── MethodNotAllowed      405 method_not_allowed
├── Conflict              409 conflict                the id is running now
├── KeyReused             422 idempotency_key_reused  the same key with another body
├── TooLarge              413 too_large
├── UnsupportedMediaType  415 unsupported_media_type
├── QueueFull             503 queue_full              retryable, carries the queue's size
├── QueueTimeout          504 queue_timeout           retryable
├── ShuttingDown          503 shutting_down           retryable
├── Paused                503 paused                  retryable, an operator paused the intake of jobs
├── StoreFailed           503 store_failed            retryable, the job could not be written to disk
├── DiskFull              503 disk_full               retryable, the disk of STATE_DIR is below its floor
├── StorageDown           503 storage_down            retryable, the storage does not run or accepts no results
├── BrokerDown            503 broker_down             retryable, the broker of the cluster takes no job
├── MemberDown            503 member_down             retryable, the member that accepted the job does not answer
├── TooManyConnections    503 too_many_connections    retryable
└── ConfigurationError    –   configuration           refused at start, says which setting to change
    └── NotReady                                     another start may succeed with the same settings
        └── BrokerMissing                            another start may find the broker of the cluster
"""

from __future__ import annotations

from typing import Any, ClassVar


class GatewayError(Exception):
    """A request that cannot be served; its text is written for the caller.

    Parameters
    ----------
    message : str
        The problem, its place, and the remedy.
    **details : object
        More members of the JSON error body, for example ``queue_size``.

    Attributes
    ----------
    status : int
        HTTP status of the answer.
    code : str
        Stable name of the refusal.
    retryable : bool
        Whether the same request may succeed when it is sent again.
    advice : str
        The remedy, for the documentation.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    advice: ClassVar[str] = "Look at the gateway's log; please report this fault."

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def body(self) -> dict[str, Any]:
        """Return the JSON error body.

        Returns
        -------
        dict
            ``error``, ``code``, ``retryable`` and the details.
        """
        return {"error": self.message, "code": self.code, "retryable": self.retryable, **self.details}


class BadRequest(GatewayError):
    """The request itself is wrong; it fails again if it is sent again unchanged."""

    status, code = 400, "bad_request"
    advice = "Correct the field that the answer names."


class Unauthorized(GatewayError):
    """The token is missing or wrong."""

    status, code = 401, "unauthorized"
    advice = "Send a token of AUTH_TOKEN or AUTH_TOKEN_FILE: `Authorization: Bearer TOKEN`."


class Forbidden(GatewayError):
    """A browser sent this for a web page, and no token proves that the user wants it."""

    status, code = 403, "forbidden"
    advice = "Call localhost or an IP address, not from a web page; or set AUTH_TOKEN."


class InsufficientScope(GatewayError):
    """The token is valid, but its kind does not permit this."""

    status, code = 403, "insufficient_scope"
    advice = "Use a token of the kind that the answer names; AUTH_TOKEN_FILE has the kind of each."


class NotFound(GatewayError):
    """There is no such route, or nothing is known under this id."""

    status, code = 404, "not_found"
    advice = "See /openapi.json for the routes. A request_id is known for ten minutes after its job; see /v1/jobs."


class MethodNotAllowed(GatewayError):
    """The route exists, but not with this method."""

    status, code = 405, "method_not_allowed"
    advice = "Use a method from the Allow header."


class Conflict(GatewayError):
    """A job with this id is queued or running now."""

    status, code = 409, "conflict"
    advice = "Wait until that job ends, cancel it, or send another id."


class KeyReused(GatewayError):
    """The Idempotency-Key was already used for another request."""

    status, code = 422, "idempotency_key_reused"
    advice = "Send a new key with a new request; repeat a request with its key and an unchanged body."


class TooLarge(GatewayError):
    """The body is larger than the configured limit."""

    status, code = 413, "too_large"
    advice = "Send less. For a job, MAX_BODY_BYTES and MAX_UPLOAD_BYTES can be raised."


class UnsupportedMediaType(GatewayError):
    """The body has a type that the route does not accept."""

    status, code = 415, "unsupported_media_type"
    advice = "Send `Content-Type: application/json`, uncompressed."


class QueueFull(GatewayError):
    """Every place in the queue is taken; the answer comes at once, so that the caller's timeout is not spent here."""

    status, code, retryable = 503, "queue_full", True
    advice = "Send it again after Retry-After, or raise SLOTS or QUEUE_LENGTH."


class QueueTimeout(GatewayError):
    """The job waited longer for a slot than the queue timeout allows."""

    status, code, retryable = 504, "queue_timeout", True
    advice = "Send it again later, or raise SLOTS or QUEUE_TIMEOUT."


class ShuttingDown(GatewayError):
    """The gateway drains: it finishes the jobs that run and accepts no new ones."""

    status, code, retryable = 503, "shutting_down", True
    advice = "Send it again when the gateway runs again."


class Paused(GatewayError):
    """An operator paused the gateway: accepted jobs go on, and new ones are refused."""

    status, code, retryable = 503, "paused", True
    advice = "Send it again later; an operator ends the pause with `transform-gateway resume`."


class StoreFailed(GatewayError):
    """The job could not be written to the job store, so it was not accepted."""

    status, code, retryable = 503, "store_failed", True
    advice = "Free space on the disk of STATE_DIR; the gateway's log names the cause."


class DiskFull(GatewayError):
    """The disk of STATE_DIR is nearly full, so a job would fail for lack of space."""

    status, code, retryable = 503, "disk_full", True
    advice = "Free space or inodes on the disk of STATE_DIR; MIN_FREE_DISK_BYTES sets the floor."


class StorageDown(GatewayError):
    """The embedded S3 server does not run, or too many results wait for a storage that does not accept them."""

    status, code, retryable = 503, "storage_down", True
    advice = (
        "Send it again; the embedded S3 server restarts by itself. For other storage, check that it can be "
        "reached, or raise MAX_DELIVERIES."
    )


class BrokerDown(GatewayError):
    """The broker of the cluster does not answer or has no room, so the job was not accepted."""

    status, code, retryable = 503, "broker_down", True
    advice = "Send it again later, or to another member; see the log of the NATS server."


class MemberDown(GatewayError):
    """The member of the cluster that accepted the job does not answer, so nothing is known about the job."""

    status, code, retryable = 503, "member_down", True
    advice = "Send it again later. The job is not lost: its record is at the member that the message names."


class TooManyConnections(GatewayError):
    """All connections have requests in progress, or all streams are open."""

    status, code, retryable = 503, "too_many_connections", True
    advice = "Send it again after Retry-After, or raise MAX_CONNECTIONS."


class ConfigurationError(GatewayError):
    """The gateway cannot start as configured; the text names the setting to change."""

    code = "configuration"
    advice = "Change the setting that the message names."


class NotReady(ConfigurationError):
    """A process that the start needs has ended, or the disk fails; another start may succeed with the same settings."""


class BrokerMissing(NotReady):
    """The broker of the cluster cannot be used; it may be starting too, so another start may find it."""


def refusal_kinds() -> tuple[type[GatewayError], ...]:
    """Return the refusals that a request to run a job can get.

    Returns
    -------
    tuple of type
        Subclasses of `GatewayError`; `GatewayError` itself (a fault of ours) is the last.
    """
    at_start_or_later = (ConfigurationError, QueueTimeout)
    kinds = [k for k in GatewayError.__subclasses__() if k.__module__ == __name__ and k not in at_start_or_later]
    return (*kinds, GatewayError)
