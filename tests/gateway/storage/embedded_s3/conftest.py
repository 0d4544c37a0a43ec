"""An embedded S3 server for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from tornado.ioloop import IOLoop

from gateway.storage.embedded_s3.server import EmbeddedS3, EmbeddedS3Options
from tests.support.ports import free_port

ACCESS_KEY, SECRET_KEY = 'read"er', """a/secret+key with "quotes" and 'such' ${HOME}"""
KEYS = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
BUCKET = "metabase-python-runner"


def options(directory: Path, **more: float) -> EmbeddedS3Options:
    return EmbeddedS3Options(directory / "s3", port=free_port(), access_key=ACCESS_KEY, secret_key=SECRET_KEY, **more)  # type: ignore[arg-type]


@pytest.fixture
def server(io_loop: IOLoop, tmp_path: Path) -> Iterator[EmbeddedS3]:
    server = EmbeddedS3(options(tmp_path, expire_seconds=0))
    io_loop.run_sync(server.start)
    yield server
    io_loop.run_sync(server.stop)


def boto(server: EmbeddedS3) -> Any:
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1", config=config, **KEYS)
