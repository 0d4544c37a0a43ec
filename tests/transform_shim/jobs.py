"""Run one job in a forked child, with the three pipes that a kernel has, and look at what came of it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import selectors
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transform_shim.job import run as shim

DEADLINE_SECONDS = 60.0

#: Pause before a job that was interrupted is interrupted again. asyncio.run sets no wakeup descriptor: a signal between the
#: last bytecode of its select and the system call in it waits for the next event.
AGAIN_SECONDS = 5.0
NAMES = {b"o": "stdout", b"e": "stderr", b"p": "progress", b"d": "done"}


@dataclass
class Outcome:
    """The outcome of a job: files, frames in order, raw output, and the end of its process."""

    folder: Path
    status: int
    frames: list[tuple[str, bytes]] = field(default_factory=list)
    raw: dict[str, bytes] = field(default_factory=dict)
    #: Whether the shim said once, and last, that it is done, when the result was there.
    said_done: bool = False
    #: Everything in the order in which a reader that drains the log pipe first sees it.
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any]:
        assert self.has_result, (self.status, self.frames, self.raw)
        return json.loads((self.folder / "result.json").read_bytes())

    @property
    def has_result(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def output(self) -> str:
        return (self.folder / "output").read_bytes().decode()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=_no_constant) for line in self.output.split("\n") if line]

    def cells(self, column: str) -> list[Any]:
        return [row[column] for row in self.rows]

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_bytes())

    @property
    def types(self) -> dict[str, str]:
        return {entry["name"]: entry["base_type"] for entry in self.manifest["fields"]}

    def stream(self, name: str) -> str:
        return b"".join(data for stream, data in self.frames if stream == name).decode(errors="replace")

    @property
    def stdout(self) -> str:
        return self.stream("stdout")

    @property
    def stderr(self) -> str:
        return self.stream("stderr")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def columns(**base_types: str) -> list[dict[str, Any]]:
    return [{"name": name, "base_type": base} for name, base in base_types.items()]


def table(fields: Sequence[Mapping[str, Any]] | None, data: str | bytes, **options: Any) -> dict[str, Any]:
    return {"fields": fields, "data": data.encode() if isinstance(data, str) else data, **options}


def request_for(folder: Path, code: str, tables: Mapping[str, Mapping[str, Any]], **options: Any) -> dict[str, Any]:
    """Lay out a job's files in `folder` and describe it."""
    work = folder / "work"
    work.mkdir(parents=True)
    entries = []
    for number, (alias, given) in enumerate(tables.items()):
        data_path, manifest_path = folder / f"table-{number}", folder / f"table-{number}.manifest"
        data_path.write_bytes(given["data"])
        if given["fields"] is not None:
            manifest = {"schema_version": 1, "data_format": "jsonl", "data_version": 1, "fields": given["fields"]}
            manifest_path.write_text(json.dumps(manifest | {"table_metadata": {"table_id": 7}}))
        entries.append(
            {
                "alias": alias,
                "data_path": str(data_path),
                "manifest_path": str(manifest_path) if given["fields"] is not None else None,
                "data_format": given.get("data_format", "jsonl"),
                "compression": given.get("compression"),
            }
        )
    return {
        "version": 1,
        "code": code,
        "library": {},
        "tables": entries,
        "output_format": "jsonl",
        "output_path": str(folder / "output"),
        "manifest_path": str(folder / "manifest.json"),
        "result_path": str(folder / "result.json"),
        "work_dir": str(work),
        "limits": {"memory_bytes": 1 << 30, "file_size_bytes": 500 << 20, "descriptors": 256, "processes": 50},
        **options,
    }


def allow_data(size_bytes: int) -> Callable[[], None]:
    """For `before`: limit private memory to what is there now and `size_bytes` more (allocators reserve plenty)."""

    def limit() -> None:
        gc.collect()  # what earlier tests left would be freed during the job, and be room that it must not have
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        allowed_bytes = (int(status["VmData"].split()[0]) << 10) + size_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (allowed_bytes, allowed_bytes))

    return limit


def run_job(
    folder: Path,
    code: str,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    limits: Mapping[int, int] | None = None,
    before: Callable[[], None] | None = None,
    interrupt_when: bytes | None = None,
    in_loop: bool = False,
    **options: Any,
) -> Outcome:
    """Fork, run the job in the child, and collect everything.

    `limits` are rlimits, `before` runs in the child; with `in_loop` a task of an event loop calls the shim, as in a
    kernel.
    """
    assert "polars" not in sys.modules, "Polars' threads are missing in a fork: use it by the fixture `elsewhere`"
    request = json.dumps(request_for(folder, code, tables or {}, **options))
    pipes = [os.pipe() for _ in range(3)]
    child = os.fork()
    if not child:
        _be_kernel(pipes, request, limits or {}, before, in_loop)
    for _, writing in pipes:
        os.close(writing)
    outcome = Outcome(folder, 0)
    try:
        _collect(outcome, [reading for reading, _ in pipes], child, interrupt_when)
    finally:
        for reading, _ in pipes:
            os.close(reading)
    return outcome


def _be_kernel(
    pipes: list[tuple[int, int]], request: str, limits: Mapping[int, int], before: Any, in_loop: bool
) -> None:
    status = 99
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        ends = [os.dup(writing) for _, writing in pipes]
        high = [os.dup2(end, 200 + number) for number, end in enumerate(ends)]
        os.dup2(null, 0)
        for number, end in enumerate(high):
            os.dup2(end, number + 1)
        # Not os.closerange(): Arrow keeps a pipe once it has read a file in this process, and aborts each process that
        # the job forks if that is closed.
        for end in {*ends, *high, *(end for pipe in pipes for end in pipe)} - {0, 1, 2, 3}:
            os.close(end)
        os.environ["TRANSFORM_LOG_FD"] = "3"
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, value in limits.items():
            resource.setrlimit(name, (value, value))
        asyncio.set_event_loop_policy(None)  # an earlier test's loop would have descriptors that are closed here
        if before is not None:
            before()
        if in_loop:
            _run_in_loop(request)
        else:
            shim.run_job(request)
        status = 0
    except BaseException:  # run() raises nothing; an exception here is for the developer
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _run_in_loop(request: str) -> None:
    async def cell() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        shim.run_job(request)
        assert (asyncio.get_running_loop(), asyncio.current_task()) == (loop, task)
        assert asyncio.get_event_loop_policy().get_event_loop() is loop
        await asyncio.sleep(0)  # the loop goes on

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(cell())


def _collect(outcome: Outcome, ends: list[int], child: int, interrupt_when: bytes | None) -> None:
    names = {ends[0]: "raw_stdout", ends[1]: "raw_stderr", ends[2]: "log"}
    deadline = time.monotonic() + DEADLINE_SECONDS
    is_interrupted = False
    unparsed = bytearray()
    with selectors.DefaultSelector() as selector:
        for end in ends:
            os.set_blocking(end, False)
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            left = max(0.0, deadline - time.monotonic())
            ready = {key.fd for key, _ in selector.select(min(left, AGAIN_SECONDS) if is_interrupted else left)}
            if not ready and is_interrupted and time.monotonic() < deadline:
                os.kill(child, signal.SIGINT)
                continue
            if not ready:
                os.kill(child, signal.SIGKILL)
                raise TimeoutError(f"job still running after {DEADLINE_SECONDS} s: {outcome.frames[-3:]}")
            # The log pipe first, all of it; then one read of each raw pipe that held something before. As long as a raw
            # pipe is not empty no frame is written, so what is in the log by then was printed before.
            for end in (ends[2], *(end for end in ends[:2] if end in ready)):
                if end in selector.get_map() and not _drain(outcome, end, names[end], unparsed):
                    selector.unregister(end)
            if interrupt_when and any(interrupt_when in data for _, data in outcome.frames):
                os.kill(child, signal.SIGINT)
                interrupt_when, is_interrupted = None, True
    outcome.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _drain(outcome: Outcome, end: int, name: str, unparsed: bytearray) -> bool:
    while True:
        try:
            data = os.read(end, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        if name != "log":
            outcome.raw[name] = outcome.raw.get(name, b"") + data
            outcome.seen.append((name, data))
            return True
        unparsed += data
        while len(unparsed) >= 5:
            tag, length = struct.unpack("<cI", unparsed[:5])
            assert length <= 4091
            if len(unparsed) < 5 + length:
                break
            frame = (NAMES[tag], bytes(unparsed[5 : 5 + length]))
            if frame[0] == "done":
                outcome.said_done = (outcome.folder / "result.json").exists() and not outcome.said_done
            else:
                assert not outcome.said_done, f"after the last word: {frame}"
                outcome.frames.append(frame)
                outcome.seen.append(frame)
            del unparsed[: 5 + length]
