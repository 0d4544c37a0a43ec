"""The client's exceptions. `failures` and `refusals` have one class for each code.

TransformError
├── GatewayUnreachable   no gateway responds at the URL, or the connection broke
├── VersionMismatch      the gateway's version does not fit the client's; nothing ran
├── GatewayRefused       the request was refused and nothing ran: `refusals.QueueFull`, `refusals.Unauthorized`, ...
└── TransformFailed      the job ran and failed: `failures.UserError`, `failures.MemoryLimit`, ...
"""

from __future__ import annotations

from typing import Any, ClassVar

from gateway.core.errors import FAILURES, FailureCode, refusal_kinds
from gateway.core.events import LogLine


class TransformError(Exception):
    """Base of the client's exceptions.

    Attributes
    ----------
    code : str
        Stable code of the cause; see the table of failures in the documentation.
    message : str
        The cause in a sentence.
    status : int or None
        HTTP status, if the gateway answered.
    retryable : bool
        Whether the same request may succeed later.
    log : tuple of LogLine
        The job's output, with the cause of a failure as its last line; empty if nothing ran.
    """

    code: str = "internal"
    status: int | None = None
    retryable: bool = False
    log: tuple[LogLine, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class GatewayUnreachable(TransformError):
    """No gateway responds at the URL, or the connection broke before the response was complete."""

    code = "unreachable"
    retryable = True


class VersionMismatch(TransformError):
    """The gateway's version does not fit the client's."""

    code = "version_mismatch"


class GatewayRefused(TransformError):
    """The gateway refused the request; nothing ran.

    Attributes
    ----------
    body : dict
        The whole response.
    """

    _kinds: ClassVar[dict[str, type[GatewayRefused]]] = {}

    def __init_subclass__(cls) -> None:
        cls._kinds[cls.code] = cls
        cls.__doc__ = next((kind.__doc__ for kind in refusal_kinds() if kind.code == cls.code), cls.__doc__)

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body.get("error") or f"the gateway responded {status}"))
        self.code = str(body.get("code") or status)
        self.status = status
        self.retryable = bool(body.get("retryable"))
        self.body = body

    @classmethod
    def of(cls, status: int, body: dict[str, Any]) -> GatewayRefused:
        """Return the exception of the code in a response; `GatewayRefused` itself for an unknown code."""
        return cls._kinds.get(str(body.get("code")), GatewayRefused)(status, body)


class TransformFailed(TransformError):
    """The job ran and failed.

    Attributes
    ----------
    exit_code : int
        Of the job; never 0.
    answer : dict
        The whole response.
    """

    _kinds: ClassVar[dict[str, type[TransformFailed]]] = {}

    def __init_subclass__(cls) -> None:
        cls._kinds[cls.code] = cls
        cls.__doc__ = FAILURES[FailureCode(cls.code)].meaning

    def __init__(self, answer: dict[str, Any], log: tuple[LogLine, ...]) -> None:
        super().__init__(str(answer.get("error") or "the job failed"))
        self.code = str(answer.get("code") or "internal")
        self.status = next((kind.status for code, kind in FAILURES.items() if code == self.code), 500)
        self.retryable = bool(answer.get("retryable"))
        self.exit_code = int(answer.get("exit_code", 1))
        self.answer = answer
        self.log = log

    @classmethod
    def of(cls, answer: dict[str, Any], log: tuple[LogLine, ...]) -> TransformFailed:
        """Return the exception of the code in a response; `TransformFailed` itself for an unknown code."""
        return cls._kinds.get(str(answer.get("code")), TransformFailed)(answer, log)
