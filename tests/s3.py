"""A real S3 server for tests: SeaweedFS on loopback, with identities, so that signatures are really checked."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
from botocore.config import Config

from gateway.storage.weed import free_ports, remove_sockets, weed_path

READY_SECONDS = 60.0
ACCESS_KEY, SECRET_KEY, REGION, BUCKET = "test", "secret-of-the-tests", "us-east-1", "metabase-python-runner"


class S3Server:
    """A ``weed server`` process with one bucket, its data in a directory of its own.

    Use as a context manager. Objects are put and read with boto3, URLs presigned by boto3 as Metabase's SDK does it:
    in the query, with only ``host`` signed.
    """

    endpoint: str

    def __enter__(self) -> S3Server:
        self._directory = Path(tempfile.mkdtemp(prefix="tg-s3-", dir="/tmp"))
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process: subprocess.Popen[bytes] | None = getattr(self, "process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL)  # nothing in it is worth a clean end, which takes seconds
            process.wait(10)
        remove_sockets(getattr(self, "_arguments", ()))
        if hasattr(self, "client"):
            self.client.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def url(self, operation: str, key: str, seconds: int = 600) -> str:
        """Presign ``get_object`` or ``put_object``."""
        url: str = self.client.generate_presigned_url(operation, {"Bucket": BUCKET, "Key": key}, seconds)
        return url

    def get_url(self, key: str, seconds: int = 600) -> str:
        return self.url("get_object", key, seconds)

    def put_url(self, key: str, seconds: int = 600) -> str:
        return self.url("put_object", key, seconds)

    def put(self, key: str, content: bytes, **extra: Any) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content, **extra)

    def get(self, key: str) -> bytes | None:
        try:
            answer = self.client.get_object(Bucket=BUCKET, Key=key)
        except self.client.exceptions.NoSuchKey:
            return None
        with contextlib.closing(answer["Body"]) as body:
            content: bytes = body.read()
        return content

    def new_prefix(self) -> str:
        """Return a key prefix that no other test uses."""
        return f"run-{uuid.uuid4().hex}"

    def _start(self) -> None:
        directory = self._directory
        identity = {
            "name": "metabase",
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        }
        (directory / "identities.json").write_text(json.dumps({"identities": [identity]}))
        (directory / "data").mkdir()
        ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        argv = [
            weed_path(), "-logtostderr=true", "server", f"-dir={directory}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.peers=none", "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=40", "-filer", "-s3",
            f"-filer.localSocket={directory}/filer.sock", f"-s3.localSocket={directory}/s3.sock",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", f"-s3.config={directory}/identities.json",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]  # fmt: skip
        self._arguments = argv
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=directory, start_new_session=True)
        self.port = ports["s3.port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        """Wait for the port, then for the bucket and a first object: the S3 side is up before the volumes are."""
        deadline, last = time.monotonic() + READY_SECONDS, "no answer"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"weed ended with {self.process.returncode}:\n{self._log_tail()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", "/healthz")
                connection.getresponse().read()
                with contextlib.suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
                    self.client.create_bucket(Bucket=BUCKET)
                self.client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            except Exception as error:
                last = str(error)
            else:
                return
            finally:
                connection.close()
            time.sleep(0.1)
        raise RuntimeError(f"the S3 server was not ready within {READY_SECONDS:g} s: {last}\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join((self._directory / "log").read_text(errors="replace").splitlines()[-20:])


_PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc",
)  # fmt: skip
