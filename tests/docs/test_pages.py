"""The instructions of the pages work: commands parse, targets, routes, settings and messages exist."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import COMMANDS
from gateway.core.errors import FailureCode, refusal_kinds
from gateway.http.routes import ROUTES
from gateway.process.app import TransformGatewayApp
from kernel_spec.provisioner import TransformProvisioner
from tests.support.gateway_process import GatewayProcess

ROOT = Path(__file__).parents[2]
OPERATORS = ("monitoring", "troubleshooting", "upgrading", "failures", "settings")
AUTHORS = ("transforms", "contracts", "testing", "command-line", "notebooks", "debugging", "python-client")
PAGES = [ROOT / "docs" / f"{name}.md" for name in OPERATORS + AUTHORS]
EXECUTED = {"command-line", "python-client"}
"""Pages whose blocks are run as they are; see `test_readme`."""

MAKEFILE = (ROOT / "Makefile").read_text()
SETTINGS = {str(trait.metadata["env"]) for trait in TransformGatewayApp.class_own_traits(config=True).values()}
OTHERS = {"MB_PYTHON_RUNNER_API_TOKEN", "MB_PYTHON_RUNNER_URL", "LINES", "FOLLOW", "PYTHON", "PANDAS"}
OTHERS |= {"EXTRA_PACKAGES", "SSL_CERT_FILE", "OUTPUT_SCHEMA"}
OTHERS |= {"JUPYTER_CONFIG_DIR", "METABASE_URL", "METABASE_API_KEY", "TRANSFORM_GATEWAY", "TRANSFORM_GATEWAY_URL"}
OTHERS |= {f"TRANSFORM_KERNEL_{name.upper()}" for name in TransformProvisioner.class_own_traits(config=True)}
OPENTELEMETRY = {
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
}
"""Variables that are no settings: of Metabase, make, Jupyter, the kernelspec, and the OpenTelemetry SDK."""

Command = tuple[dict[str, str], list[str]]


def commands() -> list[str]:
    """Return each command line of the pages: lines of shell blocks, and commands within a sentence."""
    found: list[str] = []
    for page in PAGES:
        text = page.read_text()
        if page.stem not in EXECUTED:
            for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
                found += block.splitlines()
        found += re.findall(r"`((?:make|transform-gateway|pip) [^`]+)`", text)
    return sorted(set(found))


def split(line: str) -> Command:
    """Return the settings in front of a command or on make's command line, and its words."""
    words = shlex.split(line)
    settings = dict(word.split("=", 1) for word in words if re.match("[A-Z_]+=", word))
    return settings, [word for word in words if not re.match("[A-Z_]+=", word)]


@functools.cache
def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *command.split(), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("line", commands())
def test_command_exists_with_its_options(line: str) -> None:
    settings, words = split(line)
    assert settings.keys() <= SETTINGS | OTHERS | OPENTELEMETRY
    match words:
        case ["make", target]:
            assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)
        case ["transform-gateway", "host", *options] | ["transform-gateway", *options] if all(
            word.startswith("--") for word in options
        ):
            assert all(f"\n{option.partition('=')[0]}" in help_of("") for option in options)
        case ["transform-gateway", "COMMAND", "--help"]:
            pass  # each command is asked for its help by `test_docs`
        case ["transform-gateway", command, *arguments]:
            assert command in COMMANDS
            for option in arguments:
                assert not option.startswith("--") or re.search(rf"{option}\b", help_of(command)), option
        case ["pip", "install", package]:
            extra = re.fullmatch(r"transform-gateway\[(\w+)\]", package)
            assert extra is not None
            assert re.search(rf"^{extra[1]} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        case ["curl", "-s", url]:
            assert re.sub(r"^http://[^/]+", "", url) in {route.path for route in ROUTES}
        case ["git", "pull"] | ["export"]:
            pass
        case _:
            pytest.fail("a command of a kind that nothing looks at")


def test_shown_looks_at_a_running_gateway_work(running_gateway: GatewayProcess) -> None:
    for line in commands():
        _, words = split(line)
        if words[:2] != ["transform-gateway", "status"]:
            continue
        own = [word for word in words[1:] if "://" not in word and word != "--url"]
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *own, "--url", running_gateway.url, "--token", running_gateway.token],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "tier" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_settings_and_codes_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", page.read_text(), flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", text)
    named = {name for span in spans for name in re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", span)}
    assert named <= SETTINGS | OTHERS | OPENTELEMETRY
    codes = {*map(str, FailureCode), *(kind.code for kind in refusal_kinds())}
    first_cells = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", text.partition("## Jobs fail")[2], re.MULTILINE)
    assert {code for cell in first_cells for code in cell if code} <= codes


def test_every_failure_of_a_job_is_in_the_list_or_in_troubleshooting() -> None:
    failures = (ROOT / "docs" / "failures.md").read_text()
    assert all(f"| `{code}` |" in failures for code in [*FailureCode, *(kind.code for kind in refusal_kinds())])


def test_messages_that_are_quoted_are_those_that_are_given() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition("## It does not start")[2].partition("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    sources = [path.read_text() for path in (ROOT / "gateway").rglob("*.py")] + [MAKEFILE]
    # a message that is written over two lines of source is one text
    given = re.sub(r'"\s+f?"', "", "\n".join(sources))
    assert len(quoted) >= 5
    for message in quoted:
        for part in re.split(r"\s*\.\.\.,?\s*|\s*\d+\s*", message):
            assert part in given, f"{part!r} of {message!r}"


def test_members_of_the_status_and_the_log_that_are_named_exist(running_gateway: GatewayProcess) -> None:
    status = str(running_gateway.request("GET", "/v1/status").body)
    for name in ("gateway_has_root", "queue_size", "busy_slots", "fork_server", "draining", "last_start_failure"):
        assert any(f"`{name}`" in page.read_text() for page in PAGES)
        assert f"'{name}'" in status
    table = (ROOT / "docs" / "monitoring.md").read_text().partition("A job's line adds:")[2].partition("No line")[0]
    named = {name for cell in re.findall(r"^\|([^|]+)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}
    source = (ROOT / "gateway" / "telemetry" / "logging.py").read_text()
    assert named == set(
        re.findall(r'^        "(\w+)": ', source.partition("facts = {")[2].partition("}\n")[0], re.MULTILINE)
    )
