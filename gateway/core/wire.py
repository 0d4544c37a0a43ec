"""The JSON forms of jobs, logs and verdicts, for a store on disk and for other machines.

Every message is one object with a ``type`` and a ``version``. Reading a job is strict: an unknown type, version or
member is refused, because a reader that skips what it does not know would run another job than the one that was
accepted. Of a verdict, members that a later version added are ignored: during an upgrade, hosts of both versions run
jobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from gateway.core.events import LogSnapshot
from gateway.core.job import Job, Verdict

#: Raised when a member is removed or changes its meaning, or is added and always written. A new member that is written
#: only where it is used needs no new version, nor does any new member of a verdict.
WIRE_VERSION = 1

M = TypeVar("M")


class WireError(ValueError):
    """The bytes are not a message of the expected type and version."""


class _Head(Struct):
    type: str
    version: int


class _JobMessage(Struct, frozen=True, forbid_unknown_fields=True, tag="job"):
    version: Literal[1]
    job: Job


class _LogMessage(Struct, frozen=True, forbid_unknown_fields=True, tag="log"):
    version: Literal[1]
    log: LogSnapshot


class _VerdictMessage(Struct, frozen=True, forbid_unknown_fields=True, tag="verdict"):
    version: Literal[1]
    verdict: Verdict


def encode_job(job: Job) -> bytes:
    """Return the JSON form of a job; raises UnicodeEncodeError where a text has a lone surrogate."""
    return _ENCODER.encode(_JobMessage(1, job))


def decode_job(data: bytes) -> Job:
    """Return the job that `encode_job` wrote.

    Raises
    ------
    WireError
        The text names the member that is wrong.
    """
    return _decode(_JOB, data, "job").job


def encode_log(log: LogSnapshot) -> bytes:
    """Return the JSON form of a job's log."""
    return to_json(_LogMessage(1, log))


def decode_log(data: bytes) -> LogSnapshot:
    """Return the log that `encode_log` wrote.

    Raises
    ------
    WireError
        The text names the member that is wrong.
    """
    return _decode(_LOG, data, "log").log


def encode_verdict(verdict: Verdict) -> bytes:
    """Return the JSON form of a verdict."""
    return to_json(_VerdictMessage(1, verdict))


def decode_verdict(data: bytes) -> Verdict:
    """Return the verdict that `encode_verdict` wrote.

    Raises
    ------
    WireError
        The text names the member that is wrong.
    """
    return _decode(_VERDICT, data, "verdict").verdict


def to_json(message: Struct) -> bytes:
    """Return a message as JSON; a lone surrogate, which UTF-8 cannot encode, becomes text."""
    try:
        return _ENCODER.encode(message)
    except UnicodeEncodeError:
        return _ENCODER.encode(_without_surrogates(msgspec.to_builtins(message)))


def _without_surrogates(value: Any) -> Any:
    """Return `value` with each lone surrogate, which UTF-8 cannot encode, as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(each) for name, each in value.items()}
    return [_without_surrogates(each) for each in value] if isinstance(value, list | tuple) else value


def _decode(decoder: msgspec.json.Decoder[M], data: bytes, kind: str) -> M:
    try:
        head = _HEAD.decode(data)
        if head.type != kind:
            raise WireError(f"expected a message of type {kind!r}, not {head.type[:40]!r}")
        if head.version != WIRE_VERSION:
            raise WireError(f"the {kind} is of version {head.version}; only version {WIRE_VERSION} can be read here")
        return decoder.decode(data)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"the {kind} cannot be read: {error}") from None


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"no JSON form for {type(value).__name__}")


def _decode_path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected the text of a path, not {type(value).__name__}")


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_path)
_HEAD = msgspec.json.Decoder(_Head)
_JOB = msgspec.json.Decoder(_JobMessage, dec_hook=_decode_path)
_LOG = msgspec.json.Decoder(_LogMessage)
_VERDICT = msgspec.json.Decoder(_VerdictMessage)
