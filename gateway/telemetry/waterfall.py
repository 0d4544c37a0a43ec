"""The waterfall of a job's stages: when each began and ended, for the page, notebooks, the command line and traces."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

__all__ = ["INSIDE_EXECUTE", "StageSpan", "lay_out"]

#: The parts of the stage ``execute``, in their order.
INSIDE_EXECUTE = ("import", "read", "transform", "write", "profile")


class StageSpan(Struct, frozen=True, omit_defaults=True):
    """One stage, with its times in seconds; `parent` is the stage that contains it."""

    name: str
    begin: float
    end: float
    parent: str | None = None


def lay_out(
    stages: Mapping[str, float], created: float = 0.0, started: float | None = None, finished: float | None = None
) -> list[StageSpan]:
    """Return the span of each stage, reconstructed from the durations of the stages.

    Fetch begins when the job is accepted, and may overlap with the wait for a slot. Claim, execute, hold and kill
    follow one another when both are done; delivery ends with the job. The stages inside ``execute`` end with it.

    Parameters
    ----------
    stages : mapping of str to float
        Stage to its duration in seconds.
    created, started, finished : float
        Times of the job in seconds since the epoch. `started` is None if it had no slot; `finished` is None where only
        the durations are known, so that delivery follows the other stages.
    """
    spans: list[StageSpan] = []
    now = started if started is not None else created + stages.get("queue", 0.0)
    if "queue" in stages:
        spans.append(StageSpan("queue", created, now))
    if "fetch" in stages:
        spans.append(StageSpan("fetch", created, created + stages["fetch"]))
        now = max(now, created + stages["fetch"])
    for name in ("claim", "execute", "hold", "kill"):
        if name in stages:
            spans.append(StageSpan(name, now, now + stages[name]))
            now += stages[name]
        if name == "execute":
            spans += _inside_execute(stages, now)
    if "deliver" in stages:
        begin = now if finished is None else finished - stages["deliver"]
        spans.append(StageSpan("deliver", begin, begin + stages["deliver"]))
    return spans


def _inside_execute(stages: Mapping[str, float], end: float) -> list[StageSpan]:
    inside = [name for name in INSIDE_EXECUTE if name in stages]
    spans, begin = [], end - sum(stages[name] for name in inside)
    for name in inside:
        spans.append(StageSpan(name, begin, begin + stages[name], "execute"))
        begin += stages[name]
    return spans
