"""One container of the image, started as the Makefile does it, and what can be asked of it from outside and inside."""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
import sys
import time
import uuid
from types import TracebackType
from typing import Any

import boto3
from botocore.config import Config

from tests.image.engine import Engine, EngineError
from tests.support.ports import free_port

HEALTHY_SECONDS = 60
JOB_SECONDS = 60
BUCKET = "metabase-python-runner"


class Container:
    """A running container; a context manager that leaves none behind.

    Attributes
    ----------
    healthy_seconds
        From the call that starts it to the first healthy answer; the engine's own work is in it.
    """

    def __init__(self, engine: Engine, image: str, *options: str, **settings: str) -> None:
        self.engine, self.image, self.options, self.settings = engine, image, options, settings
        self.name = f"transform-gateway-test-{uuid.uuid4().hex[:8]}"
        self.token = secrets.token_hex(16)
        self.port, self.s3_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.healthy_seconds = 0.0

    def __enter__(self) -> Container:
        environment = f"--env PORT={self.port} --env INTERNAL_S3_PORT={self.s3_port}"
        # in the host's network it would have the host's name too, and so the user ids of a gateway that runs there
        options = " ".join([self.engine.run_options, f"--hostname {self.name}", environment, *self.options])
        began = time.monotonic()
        try:
            done = self.engine.make(
                "docker-run", AUTH_TOKEN=self.token, IMAGE=self.image, CONTAINER=self.name, PUBLISH="", VOLUME="",
                RUN_OPTIONS=options,
                **self.settings,
            )  # fmt: skip
            if done.returncode != 0:
                raise EngineError(f"make docker-run: {done.stdout}{done.stderr[-3000:]}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.healthy_seconds = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.engine.call("logs", "--tail", "40", self.name, check=False))
        self.engine.call("rm", "--force", "--volumes", self.name, check=False)

    def restart(self) -> float:
        """Restart it and return the seconds until it is healthy again."""
        self.engine.call("stop", "-t", "30", self.name)
        began = time.monotonic()
        self.engine.call("start", self.name)
        self.wait_until_healthy()
        return time.monotonic() - began

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS
        while time.monotonic() < deadline:
            try:
                if self.request("GET", "/v1/status")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)  # the container says nothing when it gets healthy
        raise EngineError(f"not healthy within {HEALTHY_SECONDS} s")

    def exec(self, *command: str, check: bool = True) -> str:
        return self.engine.call("exec", self.name, *command, check=check)

    def inside(self, code: str) -> Any:
        """Return what a Python expression is worth inside, as root or whoever the container is."""
        return json.loads(self.exec("python", "-c", f"import json, os, pathlib; print(json.dumps({code}))"))

    def request(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=JOB_SECONDS)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def run(self, code: str, **fields: object) -> dict[str, Any]:
        """Run a transform and return the answer; the output stands in it."""
        body = {"request_id": uuid.uuid4().hex, "code": code, "inline": "output_url" not in fields, **fields}
        return self.request("POST", "/v1/execute", body)[1]

    def tier(self) -> str:
        tier: str = self.request("GET", "/v1/status")[1]["sandbox"]["tier"]
        return tier

    def command(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a subcommand of this checkout's command line against it."""
        return subprocess.run(
            [sys.executable, "-m", "gateway", name, "--url", self.url, "--token", self.token],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip

    def storage(self) -> Any:
        """Return an S3 client as Metabase's quickstart configures one: path style, keys test/test."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.s3_port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )
