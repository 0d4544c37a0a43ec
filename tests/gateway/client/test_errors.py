"""Each cause has an exception of its own, and a gateway of another API is refused before anything runs."""

from __future__ import annotations

import pytest

from gateway.client import TransformClient, TransformFailed, VersionMismatch, failures, refusals
from gateway.client.errors import GatewayRefused
from gateway.core.errors import FAILURES, FailureCode, refusal_kinds
from tests.support.fake_gateway import FakeGateway
from tests.support.gateway_process import GatewayProcess


def name_of(code: str) -> str:
    return "".join(part.capitalize() for part in code.split("_"))


def test_each_failure_code_has_an_exception_of_its_name() -> None:
    for code in FailureCode:
        answer = {"code": code, "error": "it failed", "exit_code": 3, "retryable": True}
        failure = TransformFailed.of(answer, ())
        assert type(failure) is getattr(failures, name_of(code))
        assert (failure.code, failure.status, failure.retryable) == (code, FAILURES[code].status, True)
        assert type(failure).__doc__ == FAILURES[code].meaning
    assert type(TransformFailed.of({"code": "of_a_newer_gateway"}, ())) is TransformFailed


def test_each_refusal_has_an_exception_of_its_name() -> None:
    for kind in refusal_kinds():
        refusal = GatewayRefused.of(kind.status, kind("no").body())
        assert type(refusal) is getattr(refusals, name_of(kind.code))
        assert (refusal.code, refusal.status, refusal.retryable) == (kind.code, kind.status, kind.retryable)
    assert type(GatewayRefused.of(418, {"code": "teapot"})) is GatewayRefused


def test_gateway_of_another_api_is_refused_before_the_job_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.client.transport.VERSION", "1.4.2")
    for version in ("0.1.0", "2.0.0"):
        with (
            FakeGateway(version=version) as fake,
            pytest.raises(VersionMismatch, match=rf"has version {version} and this client 1\.4\.2.*install") as caught,
        ):
            TransformClient(fake.url).run("c")
        assert not [asked for asked in fake.asked if asked.method == "POST"]
        assert caught.value.code == "version_mismatch"
    for version in ("1.0.0", "1.9.3", "0+unknown"):
        with FakeGateway({"GET /v1/status": lambda asked: (200, {"healthy": True})}, version=version) as fake:
            assert TransformClient(fake.url).status() == {"healthy": True}


def test_real_causes_are_caught_by_their_names(running_gateway: GatewayProcess) -> None:
    client = TransformClient(running_gateway.url, running_gateway.token)
    with pytest.raises(failures.UserError) as failed:
        client.run("def transform():\n    print('so far')\n    raise KeyError('k')\n")
    assert failed.value.log[0].message == "so far"
    assert (failed.value.status, failed.value.retryable) == (500, False)
    with pytest.raises(failures.Timeout):
        client.run("import time\ndef transform():\n    time.sleep(60)\n", timeout=0.5)
    with pytest.raises(refusals.Unauthorized):
        TransformClient(running_gateway.url, "wrong").run("c")
    with pytest.raises(refusals.BadRequest) as refused:
        client.run("c", timeout=-1)
    assert (refused.value.status, refused.value.retryable) == (400, False)
