from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from kernel_spec.linux import procfs, syscalls
from kernel_spec.linux.syscall_numbers import NUMBERS
from kernel_spec.sandbox import LAYERS
from kernel_spec.sandbox.accounting import cgroup_mounts, processes
from kernel_spec.sandbox.layers import landlock, no_new_privs, seccomp, seccomp_rules
from kernel_spec.sandbox.policy import plan
from kernel_spec.sandbox.probe import tiers
from kernel_spec.sandbox.probe.probe import probe
from kernel_spec.sandbox.probe.report import Proof, Report, State, Tier
from tests.kernel_spec.sandbox.children import (
    PLAIN_USER,
    TIER_A,
    TIER_B,
    be_in_default_container,
    become,
    deny_namespaces,
    in_child,
    mount_not_on_a_process,
    scratch,
)
from tests.kernel_spec.sandbox.conftest import needs_root


def probed(scratch_dir: str, **options: object) -> Report:
    return probe(scratch_dir=scratch_dir, stamp=f"test-{os.getpid()}", **options)


@pytest.fixture(scope="module")
def here() -> Report:
    with scratch() as directory:
        return probed(directory)


def test_every_layer_has_a_line_with_a_promise_and_advice(here: Report) -> None:
    assert tuple(line.layer for line in here.layers) == LAYERS
    assert set(tiers.PROMISES) == set(tiers.REMEDIES) == set(LAYERS)
    for line in here.layers:
        assert line.promise
        assert line.why or line.state is State.ON


def test_layers_that_work_are_proved_together_from_inside(here: Report) -> None:
    assert {proof.name for proof in here.proofs} == {
        *(tiers.PROOF_NETWORK, tiers.PROOF_FILE, tiers.PROOF_SIGNAL),
        *(tiers.PROOF_MEMORY, tiers.PROOF_ROOT, tiers.PROOF_WORK),
    }
    if landlock.abi() >= landlock.ABI_SCOPES:
        assert [proof.name for proof in here.proofs if not proof.held] == []


def test_a_host_without_memory_for_filters_is_told_apart_from_one_without_filters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(NUMBERS, "seccomp", (317, 277))  # no rule of ours refuses it

    def refusing(number: int) -> dict[str, str]:
        no_new_privs.apply()
        syscalls.seccomp_filter(seccomp.assemble([seccomp_rules.refuse(("seccomp",), number)]))
        with scratch() as directory:
            report = probed(directory)
        return {"tier": report.tier.value, "why": report.of(plan.SECCOMP).why, "problem": report.problem}

    full = in_child(lambda: refusing(524))
    assert "net.core.bpf_jit_limit" in full["why"]
    assert full["problem"] == full["why"], "another start may find memory"
    none = in_child(lambda: refusing(errno.EINVAL))
    assert none["problem"] == ""


@needs_root
def test_root_with_cgroups_and_namespaces_is_tier_a(here: Report) -> None:
    missing = [name for name in TIER_A | {plan.CGROUP} if name not in here.active]
    if missing:
        pytest.skip(f"this host does not give root {', '.join(sorted(missing))}")
    assert here.tier is Tier.STRONG
    assert here.of(plan.DISK_QUOTA).state is State.ON


@needs_root
def test_init_that_cannot_be_hidden_costs_no_layer(
    here: Report, scratch_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if here.of(plan.PID_NAMESPACE).state is not State.ON or plan.USER_NAMESPACE in here.active:
        pytest.skip("this host gives root no namespace of processes")
    monkeypatch.setattr(syscalls, "mount", mount_not_on_a_process)
    report = probed(scratch_dir)
    assert (report.tier, report.active) == (here.tier, here.active)
    line = report.of(plan.PID_NAMESPACE)
    assert (line.state, "first process" in line.why) == (State.DEGRADED, True)


def test_probe_is_quick(scratch_dir: str) -> None:
    """0.3 s is the promise; processor time and the best of ten, as the machine may have other things to do."""

    def child() -> float:
        probed(scratch_dir)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    assert any(0 < in_child(child) < 0.3 for _ in range(10))


def test_probe_leaves_nothing(scratch_dir: str) -> None:
    def look() -> list[object]:
        mine = [s.pid for s in procfs.all_statuses() if s.parent_pid == os.getpid()]
        groups = [
            str(path)
            for hierarchy in cgroup_mounts.find_hierarchies()
            for path in hierarchy.directory.glob(f"{cgroup_mounts.PREFIX}test-*")
        ]
        mounts = Path("/proc/self/mounts").read_text().count("\n")
        return [mine, groups, mounts, os.listdir(scratch_dir), len(os.listdir("/proc/self/fd"))]

    def child() -> list[object]:
        # As a subreaper this process would inherit what the probe leaves behind.
        processes.become_subreaper()
        before = look()
        probed(scratch_dir)
        return [before, look()]

    before, after = in_child(child)
    assert before == after


@needs_root
def test_root_in_an_ordinary_container_is_tier_b(scratch_dir: str) -> None:
    def child() -> dict[str, object]:
        be_in_default_container()
        return probed(scratch_dir).to_json()

    report = Report.from_json(in_child(child))
    if report.of(plan.LANDLOCK).state is State.OFF:
        pytest.skip("this kernel has no Landlock, without which an ordinary container is tier D")
    work = next(proof for proof in report.proofs if proof.name == tiers.PROOF_WORK)
    if not work.held:
        pytest.skip(f"this interpreter cannot be read by another user: {work.detail}")
    assert report.tier is Tier.STANDARD
    assert report.active >= TIER_B
    assert "mount_namespace" not in report.active
    assert "seccomp profile" in report.of("mount_namespace").remedy
    line = report.of(plan.DISK_QUOTA)
    assert (line.state, "CAP_SYS_PTRACE" in line.remedy) == (State.DEGRADED, True)


@pytest.mark.parametrize("namespaces", [True, False], ids=["laptop", "restricted pod"])
def test_plain_user_is_tier_c(scratch_dir: str, namespaces: bool) -> None:
    def child() -> dict[str, object]:
        if os.geteuid() == 0:
            os.chown(scratch_dir, PLAIN_USER.uid, PLAIN_USER.gid)
            become(PLAIN_USER)
        if not namespaces:
            deny_namespaces()
        return probed(scratch_dir).to_json()

    report = Report.from_json(in_child(child))
    work = next(proof for proof in report.proofs if proof.name == tiers.PROOF_WORK)
    if not work.held:
        pytest.skip(f"this interpreter cannot be read by another user: {work.detail}")
    assert report.tier is Tier.REDUCED
    assert report.of("identity").state is State.OFF
    if not namespaces:
        assert not {"user_namespace", "mount_namespace"} & report.active
        assert report.of("rlimits").state is State.DEGRADED


def test_workspaces_that_the_user_cannot_reach_are_reported_and_never_ignored(scratch_dir: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")
    closed = Path(scratch_dir, "closed")
    closed.mkdir(mode=0o700)

    def child() -> dict[str, object]:
        be_in_default_container()
        return probed(str(closed)).to_json()

    report = Report.from_json(in_child(child))
    assert report.of("identity").state is State.OFF
    assert "cannot enter the workspace" in report.of("identity").why
    # As root without a user for workspaces jobs would be root: no tier at all.
    assert report.tier is Tier.NONE


def test_report_survives_json_and_says_no_path_and_no_secret(here: Report) -> None:
    text = json.dumps(here.to_json())
    assert Report.from_json(json.loads(text)).to_json() == here.to_json()
    assert "/tgs-" not in text


def test_report_reads_as_a_table(here: Report) -> None:
    text = here.render()
    assert text.startswith(f"Sandbox tier {here.tier.value}")
    for line in here.layers:
        assert f"\n{line.layer} " in text
    assert all(len(line) <= 110 for line in text.splitlines())
    for remedy in {line.remedy for line in here.layers if line.remedy}:
        assert text.replace("\n", " ").count(remedy[:40]) == 1


HELD = tuple(
    Proof(name, True) for name in (tiers.PROOF_NETWORK, tiers.PROOF_FILE, tiers.PROOF_SIGNAL, tiers.PROOF_MEMORY)
)
FULL = frozenset(LAYERS) - {plan.USER_NAMESPACE}


@pytest.mark.parametrize(
    ("missing", "tier"),
    [
        ("", "A"),
        ("cgroup", "B"),
        ("pid_namespace", "B"),
        ("mount_namespace", "B"),
        ("network_namespace", "B"),
        ("landlock", "B"),
        ("identity", "C"),
        ("seccomp", "D"),
        ("no_new_privs", "D"),
        ("rlimits", "D"),
        ("processes", "D"),
    ],
)
def test_tier_falls_with_the_layer_that_is_missing(missing: str, tier: str) -> None:
    assert tiers.tier_of(FULL - {missing}, HELD, allow_network=False).value == tier


def test_no_confinement_of_files_is_no_tier() -> None:
    layers = FULL - {"landlock", "mount_namespace"}
    assert tiers.tier_of(layers, HELD, allow_network=False) is Tier.NONE


@pytest.mark.parametrize(
    ("failed", "tier"),
    [
        (tiers.PROOF_NETWORK, "D"),
        (tiers.PROOF_FILE, "D"),
        (tiers.PROOF_MEMORY, "D"),
        (tiers.PROOF_SIGNAL, "C"),
    ],
)
def test_a_proof_that_fails_outweighs_the_layers(failed: str, tier: str) -> None:
    proofs = [Proof(proof.name, proof.name != failed) for proof in HELD]
    assert tiers.tier_of(FULL, proofs, allow_network=False).value == tier


def test_allowed_network_is_not_proved_absent_and_only_allowed_loopback_needs_no_namespace(scratch_dir: str) -> None:
    without = FULL - {"network_namespace"}
    assert tiers.tier_of(without, HELD, allow_network=True, allow_loopback=True) is Tier.STRONG
    assert tiers.tier_of(without | {"network_policy"}, HELD, allow_network=True) is Tier.STANDARD
    report = probed(scratch_dir, allow_network=True)
    assert tiers.PROOF_NETWORK not in {proof.name for proof in report.proofs}
    assert ("network_namespace" in report.active) is ("mount_namespace" in report.active)
    assert "Jobs have the network" in report.render()
