"""Every setting can be given by flag, file and environment; contradictions are refused with the setting's name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gateway.app import TransformGatewayApp, is_loopback
from gateway.errors import ConfigurationError
from gateway.settings import Settings
from kernel_spec.limits import Limits

FIELDS = [field.name for field in dataclasses.fields(Settings)]


def app(*argv: str) -> TransformGatewayApp:
    made = TransformGatewayApp()
    made.initialize(list(argv))
    return made


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_a_flag_an_environment_variable_and_help(name: str) -> None:
    trait = TransformGatewayApp.class_own_traits()[name]
    assert trait.metadata["config"]
    assert trait.metadata["env"].isupper()
    assert trait.help.endswith(".")
    assert TransformGatewayApp.aliases[name.replace("_", "-")] == f"TransformGatewayApp.{name}"


@pytest.mark.parametrize(("option", "holds"), [("", True), ("=true", True), ("=false", False)])
def test_option_of_a_switch_turns_it_on_by_itself(option: str, holds: bool) -> None:
    app = TransformGatewayApp()
    app.initialize([f"--enable-internal-s3{option}", f"--use-fork-server{option}"])
    assert (app.enable_internal_s3, app.use_fork_server) == (holds, holds)


def test_environment_variables_are_not_shared() -> None:
    variables = [trait.metadata["env"] for trait in TransformGatewayApp.class_own_traits(config=True).values()]
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("state_dir", "working_dir_roots")])
def test_defaults_of_traits_and_settings_agree(name: str) -> None:
    default = next(field.default for field in dataclasses.fields(Settings) if field.name == name)
    assert getattr(app(), name) == default


def test_command_line_overrides_file_overrides_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.py"
    config.write_text("c.TransformGatewayApp.slots = 3\nc.TransformGatewayApp.port = 6003\n")
    monkeypatch.setenv("SLOTS", "2")
    monkeypatch.setenv("PORT", "6002")
    monkeypatch.setenv("QUEUE_LENGTH", "7")
    made = app(f"--config={config}", "--slots=4")
    assert (made.slots, made.port, made.queue_length) == (4, 6003, 7)


@pytest.mark.parametrize(("variable", "text"), [("SLOTS", "many"), ("PORT", "70000"), ("ASYNCHRONOUS", "maybe")])
def test_a_wrong_environment_variable_is_named(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=variable):
        app()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])
def test_other_hosts_need_a_token(host: str) -> None:
    with pytest.raises(ConfigurationError, match="AUTH_TOKEN"):
        app(f"--host={host}").settings()
    assert app(f"--host={host}", "--auth-token=x").settings().host == host


def test_an_open_s3_with_the_well_known_key_is_refused() -> None:
    given = ["--enable-internal-s3=true", "--internal-s3-host=0.0.0.0"]
    with pytest.raises(ConfigurationError, match="INTERNAL_S3_SECRET_KEY"):
        app(*given).settings()
    assert app(*given, "--internal-s3-secret-key=longer").settings().internal_s3_host == "0.0.0.0"
    assert app(*given, "--internal-s3-allow-test-keys=true").settings().internal_s3_secret_key == "test"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    assert app(f"--host={host}").settings().auth_token == ""


def test_contradicting_timeouts_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_timeout_seconds"):
        app("--default-timeout-seconds=100", "--max-timeout-seconds=50").settings()


def test_without_limits_a_job_gets_more_than_any_machine_has_and_time_outs_stay() -> None:
    limited, free = app().settings(), app("--disable-limits=true", "--memory-bytes=100000000").settings()
    names = [field.name for field in dataclasses.fields(Limits)]
    assert all(getattr(free, name) > 100 * getattr(limited, name) for name in names)
    assert Limits(**{name: getattr(free, name) for name in names}).memory_bytes > 1 << 40
    assert dataclasses.replace(free, **{name: getattr(limited, name) for name in names}) == limited


@pytest.mark.parametrize(
    ("mode", "asynchronous"), [("", False), ("server", False), ("microvm", True), ("other", False)]
)
def test_run_mode_chooses_how_execute_answers_and_an_unknown_one_stops_nothing(
    mode: str, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = app(f"--run-mode={mode}")
    made.log.propagate = True
    assert made.settings().asynchronous is asynchronous
    assert ("RUN_MODE=other is not known" in caplog.text) is (mode == "other")
