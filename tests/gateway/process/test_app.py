"""Every setting can be given by flag, file and environment; contradictions are refused with the setting's name."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from jupyter_core.application import NoStart

from gateway.core.addresses import is_loopback
from gateway.core.errors import ConfigurationError
from gateway.core.settings import WITHOUT_LIMITS, Settings
from gateway.process import checks
from gateway.process.app import TransformGatewayApp
from gateway.process.checks import warnings_of
from kernel_spec.protocol.limits import LIMITS, Limits

#: Limits are settings of their own; the command `host` sets the other one.
NOT_SET = ("limits", "runs_only")
FIELDS = [*(field.name for field in dataclasses.fields(Settings) if field.name not in NOT_SET), *LIMITS]


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


def test_examples_of_the_help_begin_in_one_column() -> None:
    lines = [line for text in TransformGatewayApp().emit_examples() for line in text.splitlines()]
    examples = [line for line in lines if "transform-gateway" in line]
    assert len(examples) == 4
    assert {len(line) - len(line.lstrip()) for line in examples} == {4}


@pytest.mark.parametrize(("option", "holds"), [("", True), ("=true", True), ("=false", False)])
def test_option_of_a_switch_without_a_value_turns_it_on(option: str, holds: bool) -> None:
    app = TransformGatewayApp()
    app.initialize([f"--enable-internal-s3{option}", f"--use-fork-server{option}"])
    assert (app.enable_internal_s3, app.use_fork_server) == (holds, holds)


def test_environment_variables_are_not_shared() -> None:
    variables = [trait.metadata["env"] for trait in TransformGatewayApp.class_own_traits(config=True).values()]
    assert len(variables) == len(set(variables))


def test_each_setting_is_a_trait_and_each_trait_a_setting() -> None:
    chosen_by_others = {"disable_limits", "run_mode"}  # they set limits and `asynchronous`
    assert set(TransformGatewayApp.class_own_traits(config=True)) == {*FIELDS, *chosen_by_others}


def test_defaults_are_those_of_settings() -> None:
    assert app().settings() == dataclasses.replace(Settings(), state_dir=Path(".state").resolve())


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
    assert app(f"--host={host}", "--auth-token=longer-than-eight").settings().host == host


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
    with pytest.raises(ConfigurationError, match="MAX_TIMEOUT"):
        app("--default-timeout-seconds=100", "--max-timeout-seconds=50").settings()


def test_without_limits_a_job_gets_more_than_any_machine_has_and_time_outs_stay() -> None:
    limited, free = app().settings(), app("--disable-limits=true", "--memory-bytes=100000000").settings()
    assert all(getattr(free.limits, name) > 100 * getattr(limited.limits, name) for name in LIMITS)
    assert free.limits == WITHOUT_LIMITS
    assert dataclasses.replace(free, limits=limited.limits) == limited


@pytest.mark.parametrize(("mode", "asynchronous"), [("", False), ("server", False), ("microvm", True)])
def test_run_mode_chooses_how_execute_answers(mode: str, asynchronous: bool) -> None:
    assert app(f"--run-mode={mode}").settings().asynchronous is asynchronous


# ------------------------------------------------------------------ what is not understood is refused
def refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        app(*argv).settings()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_configuration_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    assert "nosuch.py" in refused(f"--config={tmp_path}/nosuch.py")
    (tmp_path / "other.py").write_text("c.TransformGatewayApp.slots = 2\n")
    assert "other.json" in refused(f"--config={tmp_path}/other.json")


def test_only_the_file_that_is_named_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("c.TransformGatewayApp.slots = 2\n")
    (tmp_path / "c.json").write_text('{"TransformGatewayApp": {"slots": 3, "port": 0}}')
    named = app(f"--config={tmp_path}/c.py").settings()
    assert (named.slots, named.port) == (2, 5001)
    (tmp_path / "c.py").write_text("raise ValueError('read')\n")
    assert app(f"--config={tmp_path}/c.json").settings().slots == 3


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.py", "c.TransformGatewayApp.auth_token = 'secret'\nc.TransformGatewayApp.slots == = 2\n", "line 2,"),
        ("c.py", "\nraise ValueError('wrong')\n", "line 2, is not valid: ValueError: wrong"),
        ("c.json", '{"TransformGatewayApp": {"slots": }}', "line 1,"),
        ("c.json", "[]", "no JSON object"),
        ("c.json", '{"TransformGatewayApp": {"auth_token": "secret", "auth_token": ""}}', "twice"),
        ("c.py", "c.TransformGatewayApp.slotz = 3\n", "TransformGatewayApp.slotz; did you mean TransformGatewayApp.slots?"),
        ("c.py", "c.TransformGateway.slots = 3\n", "TransformGateway; did you mean TransformGatewayApp?"),
        ("c.py", "c.Application.log_level = 'LOUD'\n", "log_level is not valid: expected one of"),
        ("c.py", "c.JupyterApp.answer_yes = 'maybe'\n", "answer_yes is not valid"),
        ("c.py", "c.TransformGatewayApp.slots = -1\nc.TransformGatewayApp.port = 'x'\n", "slots is not valid"),
    ],
)  # fmt: skip
def test_a_configuration_file_that_is_not_understood_is_refused(
    name: str, text: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    told = refused(f"--config={tmp_path / name}")
    assert str(tmp_path / name) in told
    assert reason in told


def test_a_secret_of_a_wrong_type_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("c.TransformGatewayApp.auth_token = 31415926535\n")
    told = refused(f"--config={tmp_path / 'c.py'}")
    assert "auth_token is not valid: expected a text" in told
    assert "31415926535" not in told


def test_settings_of_other_applications_in_the_common_file_are_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    (tmp_path / "jupyter_config.py").write_text("c.ServerApp.port = 1\nc.TransformGatewayApp.slots = 3\n")
    assert app().settings().slots == 3
    (tmp_path / "jupyter_config.py").write_text("c.TransformGatewayApp.slotz = 3\n")
    assert "slotz" in refused()


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--slot=3", "unknown option --slot; did you mean --slots?"),
        ("--nosuch", "unknown option --nosuch"),
        ("--TransformGatewayApp.slotz=3", "TransformGatewayApp.slotz"),
        ("--slots=many", "slots is not valid: expected an integer of at least 0 and at most 64"),
        ("--log-level=LOUD", "log_level is not valid: expected one of 10, 20"),
        ("--run-mode=foo", "run_mode is not valid: expected one of server, microvm"),
        ("--working-dir-roots=/nonexistent-directory", "no such directory: /nonexistent-directory"),
        ("--state-dir=", "STATE_DIR"),
        ("--config=", "--config is empty"),
        ("--config=.", "must end in .py or .json"),
        ("--queue-timeout-seconds=inf", "queue_timeout_seconds is not valid"),
        ("--hold-failed-minutes=1e308", "hold_failed_minutes is not valid"),
        (f"--memory-bytes={2**63}", "memory_bytes is not valid: expected a number of bytes"),
        (f"--processes={2**63}", "processes is not valid: expected an integer of at least"),
        ("--cpu-seconds=1.5", "cpu_seconds is not valid: expected a number of whole seconds"),
        ("--auth-token-file=", "AUTH_TOKEN_FILE is empty"),
        ("--tls-cert-file= ", "TLS_CERT_FILE is empty"),
        ("--tls-cert-file=/cert.pem", "TLS_KEY_FILE is not set"),
        ("--storage-hosts=http://s3.example.com", "'http://s3.example.com' is not a host"),
        ("--storage-hosts=s3.example.com/bucket", "'s3.example.com/bucket' is not a host"),
        (f"--state-dir={sys.prefix}/state", f"every job can read {sys.prefix}"),
    ],
)
def test_an_argument_that_is_not_understood_is_refused(argument: str, reason: str) -> None:
    assert reason in refused(argument)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("from traitlets.config import Config\nc = Config()\nc.TransformGatewayApp.slots = 3", "gives c another value"),
        ("load_subconfig('tokens.py')", "there is no file tokens.py"),
        ("import sys\nsys.exit(0)", "SystemExit"),
    ],
)
def test_a_file_whose_settings_would_be_lost_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "c.py").write_text(text)
    told = refused(f"--config={tmp_path / 'c.py'}")
    assert reason in told
    assert str(tmp_path / "c.py") in told


def test_a_file_may_load_another_one(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("c = get_config()\nload_subconfig('other.py')\nc.TransformGatewayApp.port = 1\n")
    (tmp_path / "other.py").write_text("c.TransformGatewayApp.slots = 3\n")
    settings = app(f"--config={tmp_path / 'c.py'}").settings()
    assert (settings.slots, settings.port) == (3, 1)


@pytest.mark.parametrize("variable", ["AUTH_TOKEN_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE"])
def test_an_empty_name_of_a_file_with_secrets_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "")
    assert f"{variable} is empty" in refused()


def test_hosts_of_storage_may_have_spaces_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ("s3.example.com", "*.example.com:9000", "[::1]:9000", "10.0.0.1", "minio")
    monkeypatch.setenv("STORAGE_HOSTS", ", ".join(hosts))
    assert app().settings().storage_hosts == hosts
    assert app(f"--storage-hosts={', '.join(hosts)}").settings().storage_hosts == hosts


@pytest.mark.parametrize("text", [",", " ", ", ,"])
def test_hosts_of_storage_that_name_none_do_not_permit_any(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert "is not a host" in refused(f"--storage-hosts={text}")
    monkeypatch.setenv("STORAGE_HOSTS", text)
    assert "STORAGE_HOSTS" in refused()


def test_an_unexpected_argument_is_refused() -> None:
    assert "'file.py'" in refused("--slots=2", "file.py")


def test_errors_of_all_sources_are_reported_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.py").write_text(
        "c.TransformGatewayApp.queue_length = -1\nc.TransformGatewayApp.slotz = 3\nc.Other.x = 1\n"
    )
    monkeypatch.setenv("PORT", "abc")
    told = refused(
        f"--config={tmp_path / 'c.py'}", "--slots=many", "--held-kernels=many", "--TransformGatewayApp.prot=1"
    )
    assert told.count("; ") >= 6
    for text in (
        "the command line: slots is not valid",
        "the command line: held_kernels is not valid",
        "the command line: unknown setting TransformGatewayApp.prot; did you mean TransformGatewayApp.port?",
        "environment variable PORT='abc' is not valid",
        f"{tmp_path / 'c.py'}: queue_length is not valid",
        f"{tmp_path / 'c.py'}: unknown setting TransformGatewayApp.slotz; did you mean TransformGatewayApp.slots?",
        f"{tmp_path / 'c.py'}: unknown setting Other",
    ):
        assert text in told
    assert "unknown option --nosuch; unknown option --alsonot" in refused("--nosuch=1", "--alsonot")


def test_all_wrong_environment_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"PORT": "abc", "SLOTS": "-1", "RUN_MODE": "foo", "STORAGE_STALL": "-1"}.items():
        monkeypatch.setenv(name, text)
    told = refused()
    assert all(name in told for name in ("PORT", "SLOTS", "RUN_MODE", "STORAGE_STALL"))


def test_sizes_and_durations_have_units_in_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.py").write_text(
        "c.TransformGatewayApp.max_body_bytes = '2MiB'\nc.TransformGatewayApp.drain_seconds = 7\n"
    )
    monkeypatch.setenv("MEMORY_LIMIT_BYTES", "2GiB")
    monkeypatch.setenv("CPU_LIMIT_SECONDS", "2m")
    monkeypatch.setenv("RESULT_KEEP", "1h30m")
    monkeypatch.setenv("HOLD_FAILED", "90s")
    settings = app(f"--config={tmp_path / 'c.py'}", "--default-timeout-seconds=5m", "--log-keep-bytes=1kB").settings()
    assert (settings.max_body_bytes, settings.log_keep_bytes, settings.drain_seconds) == (2 << 20, 1000, 7)
    assert settings.limits == Limits(memory_bytes=2 << 30, cpu_seconds=120)
    assert settings.default_timeout_seconds == 300
    assert (settings.result_keep_seconds, settings.hold_failed_minutes) == (5400, 1.5)


def test_a_size_or_duration_that_is_not_understood_is_answered_with_the_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.py").write_text(
        "c.TransformGatewayApp.queue_timeout_seconds = 'soon'\nc.TransformGatewayApp.storage_stall_seconds = 10**10\n"
    )
    monkeypatch.setenv("MAX_BODY_BYTES", "1G")
    told = refused(f"--config={tmp_path / 'c.py'}", "--hold-failed-minutes=1y")
    size = "a number of bytes or a size such as 512MB or 1GiB"
    assert f"environment variable MAX_BODY_BYTES='1G' is not valid: expected {size}, at least 1KiB" in told
    assert "queue_timeout_seconds is not valid: expected a number of seconds or a duration such as 30s" in told
    assert "hold_failed_minutes is not valid: expected a number of minutes or a duration" in told
    assert "storage_stall_seconds is not valid: expected" in told


def test_a_module_to_preload_that_no_import_finds_is_reported(tmp_path: Path) -> None:
    warnings = warnings_of(Settings(state_dir=tmp_path, preload=("json", "__main__", "nosuch.module", "a b")))
    assert "PRELOAD names modules that are not installed: __main__, nosuch.module, a b" in warnings


@pytest.mark.parametrize(
    "token", [" ", "\t", " padded-on-the-left", "padded-on-the-right ", "broken\nafter-a-word", "with-a-\x7f"]
)
def test_a_token_that_no_client_can_send_is_refused(token: str) -> None:
    assert "AUTH_TOKEN" in refused(f"--auth-token={token}")


@pytest.mark.parametrize(("token", "outcome"), [("1234567", "refused"), ("12345678", "warns"), ("1" * 16, "")])
def test_a_short_token_is_refused_beyond_loopback_and_a_longer_one_warned_of(token: str, outcome: str) -> None:
    given = ("--host=0.0.0.0", f"--auth-token={token}")
    if outcome == "refused":
        assert "8 characters" in refused(*given)
    else:
        assert bool(warnings_of(app(*given).settings())) is bool(outcome)
    assert warnings_of(app(f"--auth-token={token}").settings()) == []


def test_a_member_without_a_token_is_warned_of() -> None:
    member = ("--cluster-url=nats://127.0.0.1:4222", "--slots=1")
    (warning,) = warnings_of(app(*member).settings())
    assert "can read and end the jobs of all members" in warning
    assert warnings_of(app(*member, f"--auth-token={'1' * 16}").settings()) == []
    assert warnings_of(app(*member, "--auth-token-file=/nonexistent").settings()) == []
    assert warnings_of(dataclasses.replace(app(*member).settings(), runs_only=True)) == [], "a host has no jobs to show"


def test_slots_beyond_the_hosts_memory_give_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "memory_of_host", lambda: 16_000_000_000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert (
        "64.0 GB, but this host has 16.0 GB" in warnings_of(app("--slots=8", "--memory-bytes=8000000000").settings())[0]
    )
    assert warnings_of(app("--slots=2", "--memory-bytes=8000000000").settings()) == []


def test_slots_far_beyond_the_processors_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    (warning,) = warnings_of(app("--slots=9", "--disable-limits").settings())
    assert "SLOTS is 9, but the gateway has 2 of this host's processors" in warning
    assert warnings_of(app("--slots=8", "--disable-limits").settings()) == []


# ------------------------------------------------------------------ what is printed
def test_show_config_prints_every_value_with_its_source_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.py").write_text(
        "c.TransformGatewayApp.slots = 3\nc.TransformGatewayApp.internal_s3_secret_key = 'k3y'\n"
    )
    monkeypatch.setenv("AUTH_TOKEN", "sekret")
    monkeypatch.setenv("SLOTS", "2")
    app("--show-config", f"--config={tmp_path / 'c.py'}", "--port=0", "--run-mode=microvm").start()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TransformGatewayApp.class_own_traits(config=True))
    assert {
        "auth_token = '***'  (environment, AUTH_TOKEN)",
        f"slots = 3  ({tmp_path / 'c.py'})",
        f"internal_s3_secret_key = '***'  ({tmp_path / 'c.py'})",
        "port = 0  (command line)",
        "asynchronous = True  (RUN_MODE)",
        "queue_length = 10  (default)",
        "memory_bytes = 1GiB  (default)",
        "log_keep_seconds = 7d  (default)",
    } <= set(lines)


def test_a_configuration_file_is_not_overwritten_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.py"
    file.write_text("# mine")
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(EOFError))
    with pytest.raises(ConfigurationError, match="--yes"):
        app("--generate-config", f"--config={file}").start()
    assert file.read_text() == "# mine"
    with pytest.raises(NoStart):
        app("--generate-config", f"--config={file}", "--yes").start()
    assert "slots" in file.read_text()


def test_a_place_where_no_configuration_file_can_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        app("--generate-config", f"--config={tmp_path}/file/c.py").start()
