"""The whole failure vocabulary: every refusal and failure, with its stable code and HTTP status.

There are two kinds. A *refusal* (`GatewayError`) is raised while a request is checked; nothing ran. A *failure*
(`FailureCode`) is the verdict on a job that was accepted; it is a value and not an exception, because a failed job is a
normal result. `JobFailed` ends a job from inside the gateway with such a verdict.

The codes are public: callers switch on them, so they never change their meaning.
"""

from gateway.core.errors.failure_codes import EXIT_CODE_KILLED, FAILURES, FailureCode, FailureKind, JobFailed
from gateway.core.errors.refusals import (
    BadRequest,
    BrokerDown,
    BrokerMissing,
    ConfigurationError,
    Conflict,
    DiskFull,
    Forbidden,
    GatewayError,
    InsufficientScope,
    KeyReused,
    MemberDown,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Paused,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
    StorageDown,
    StoreFailed,
    TooLarge,
    TooManyConnections,
    Unauthorized,
    UnsupportedMediaType,
    refusal_kinds,
)

__all__ = [
    "EXIT_CODE_KILLED",
    "FAILURES",
    "BadRequest",
    "BrokerDown",
    "BrokerMissing",
    "ConfigurationError",
    "Conflict",
    "DiskFull",
    "FailureCode",
    "FailureKind",
    "Forbidden",
    "GatewayError",
    "InsufficientScope",
    "JobFailed",
    "KeyReused",
    "MemberDown",
    "MethodNotAllowed",
    "NotFound",
    "NotReady",
    "Paused",
    "QueueFull",
    "QueueTimeout",
    "ShuttingDown",
    "StorageDown",
    "StoreFailed",
    "TooLarge",
    "TooManyConnections",
    "Unauthorized",
    "UnsupportedMediaType",
    "refusal_kinds",
]
