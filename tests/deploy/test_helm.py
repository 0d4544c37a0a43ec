"""The Helm chart, linted and rendered by Helm's own library, which `make helm-test` installs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.test_deploy import KUBERNETES_VERSIONS, variables_that_exist

helm = pytest.importorskip("helm_python.chart", reason="helm-python-sdk is not installed: make helm-test")

CHART = Path(__file__).parents[2] / "deploy/helm"
NATS = {"nats": {"url": "tls://broker:4222"}}
ALL: dict[str, Any] = NATS | {
    "hosts": {"replicas": 2},
    "keda": {"enabled": True, "monitoringEndpoint": "broker:8222"},
    "members": {"storageClassName": "fast"},
    "networkPolicy": {"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "minio"}}}]}]},
}


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the manifests by kind and name."""
    texts = helm.Chart.load(str(CHART)).render(values, name="runner", namespace="transforms").values()
    manifests = [each for text in texts for each in yaml.safe_load_all(text) if each]
    return {f"{each['kind']} {each['metadata']['name']}": each for each in manifests}


@pytest.mark.parametrize("values", [NATS, ALL], ids=["as it is", "all"])
def test_the_chart_has_no_problem(values: dict[str, Any]) -> None:
    report = helm.lint(str(CHART), values, strict=True)
    assert [each for each in report["messages"] if each["severity"] > 1] == report["errors"] == []
    for version in KUBERNETES_VERSIONS:
        for manifest in rendered(values).values():
            if manifest["kind"] != "ScaledObject":  # KEDA's own
                kubernetes_validate.validate(manifest, version, strict=True)


def test_hosts_and_scaler_are_off_by_default() -> None:
    assert {name.partition(" ")[0] for name in rendered(NATS)} == {
        "Service",
        "StatefulSet",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }
    everything = rendered(ALL)
    assert everything["ScaledObject runner-hosts"]["spec"]["scaleTargetRef"]["name"] == "runner-hosts"
    assert "replicas" not in everything["Deployment runner-hosts"]["spec"], "the scaler's"
    with pytest.raises(Exception, match=r"nats\.url is the address of the NATS server"):
        rendered({})


def test_pods_fit_the_restricted_profile_and_the_settings_that_exist() -> None:
    made = rendered(ALL)
    member = made["StatefulSet runner"]["spec"]["template"]["spec"]
    host = made["Deployment runner-hosts"]["spec"]["template"]["spec"]
    assert host["containers"][0]["args"] == ["host"]
    for pod in (member, host):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        container = pod["containers"][0]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {each["name"] for each in container["env"]} - {"POD_NAME"} <= variables_that_exist()
        for probe, path in {"startupProbe": "live", "readinessProbe": "ready", "livenessProbe": "live"}.items():
            assert f"/healthz/{path}" in str(container[probe]), "only what does not answer is restarted"
        mounted = {each["name"] for each in container["volumeMounts"]}
        claims = {"state"} if pod is member else set()
        assert mounted == {each["name"] for each in pod["volumes"]} | claims
    of_host = {each["name"] for each in host["containers"][0]["env"]}
    assert not {"AUTH_TOKEN", "CLUSTER_ADVERTISE_URL"} & of_host


def test_every_pod_has_the_time_to_stop_that_is_given() -> None:
    made = rendered(ALL | {"terminationGracePeriodSeconds": 3700})
    for name in ("StatefulSet runner", "Deployment runner-hosts"):
        assert made[name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 3700


def test_services_and_policies_choose_the_pods() -> None:
    made = rendered(ALL)
    labels = {
        name: made[name]["spec"]["template"]["metadata"]["labels"]
        for name in ("StatefulSet runner", "Deployment runner-hosts")
    }
    service = made["Service runner"]["spec"]["selector"]
    assert service.items() <= labels["StatefulSet runner"].items()
    assert not service.items() <= labels["Deployment runner-hosts"].items(), "a host answers no caller"
    for each in labels.values():
        assert made["NetworkPolicy runner"]["spec"]["podSelector"]["matchLabels"].items() <= each.items()


def test_members_are_reached_under_the_names_that_they_tell() -> None:
    made = rendered(ALL)
    members, policy = made["StatefulSet runner"]["spec"], made["NetworkPolicy runner"]["spec"]
    variables = {each["name"]: each for each in members["template"]["spec"]["containers"][0]["env"]}
    told = f"http://$(POD_NAME).{members['serviceName']}:5000"
    assert variables["CLUSTER_ADVERTISE_URL"]["value"] == told
    assert made[f"Service {members['serviceName']}"]["spec"]["publishNotReadyAddresses"]
    gateways = {"podSelector": {"matchLabels": policy["podSelector"]["matchLabels"]}}
    assert gateways in policy["ingress"][0]["from"]
    assert {"to": [gateways], "ports": [{"protocol": "TCP", "port": 5000}]} in policy["egress"]
