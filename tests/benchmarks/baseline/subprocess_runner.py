"""The subprocess design, written plainly: the same HTTP request, and a new Python process importing pandas
for each job.

This is what the first public runner of Metabase did. It has no sandbox, no limits but the timeout, no live
log and no queue but asyncio's, so nothing that the gateway does besides is counted against it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tornado.httpserver
import tornado.netutil
import tornado.web
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

JOB = Path(__file__).with_name("subprocess_job.py")


class StatusHandler(tornado.web.RequestHandler):
    """Says that the runner is there."""

    def get(self) -> None:
        self.write({"healthy": True})


class ExecuteHandler(tornado.web.RequestHandler):
    """``POST /v1/execute`` with the fields of the contract."""

    def initialize(self, slots: asyncio.Semaphore) -> None:
        self.slots = slots

    async def post(self) -> None:
        request = json.loads(self.request.body)
        async with self.slots:
            began = time.monotonic()
            exit_code, events = await run_job(request)
            await AsyncHTTPClient().fetch(
                HTTPRequest(request["events_url"], method="PUT", body=events, request_timeout=60)
            )
        self.set_status(200 if exit_code == 0 else 500)
        answer = {"exit_code": exit_code, "timeout": False, "request_id": request["request_id"]}
        self.write(answer | {"execution_time": time.monotonic() - began})


async def run_job(request: dict[str, Any]) -> tuple[int, bytes]:
    """Run one job in a new process and a new directory; return its exit code and its log."""
    with tempfile.TemporaryDirectory(prefix="subprocess-runner-") as directory:
        path = Path(directory) / "request.json"
        path.write_text(json.dumps(request))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(JOB),
            str(path),
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), request.get("timeout", 60))
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
        streams = [("stdout", line) for line in out.decode().splitlines()]
        streams += [("stderr", line) for line in err.decode().splitlines()]
        lines = [json.dumps({"stream": stream, "message": message}) for stream, message in streams]
        return process.returncode or 0, "".join(line + "\n" for line in lines).encode()


async def serve(port_file: Path, slots: int) -> None:
    """Serve on a free loopback port, which is written to `port_file`."""
    places = {"slots": asyncio.Semaphore(slots)}
    routes = [("/v1/execute", ExecuteHandler, places), ("/healthz/live", StatusHandler)]
    server = tornado.httpserver.HTTPServer(tornado.web.Application(routes))  # type: ignore[arg-type]
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    fresh = port_file.with_suffix(".new")
    fresh.write_text(str(sockets[0].getsockname()[1]))
    fresh.replace(port_file)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(serve(options.port_file, options.slots))
