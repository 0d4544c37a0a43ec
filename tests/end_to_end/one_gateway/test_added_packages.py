"""`transform-gateway packages add` and `remove`: packages that only jobs have, changed below a running gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.install.package_sets import PackageSets
from kernel_spec.kernel.added_packages import UntrustedPackages, current_set
from tests.gateway.cli.commands import call
from tests.support.gateway_process import GatewayProcess
from tests.support.wheels import build_wheel

ROOT = Path(__file__).parents[3]
SECONDS = 300

#: The wheel has a module of its own, and one that must not take the place of pandas.
FILES = {
    "tgprobe/__init__.py": "import tgneeds\nVALUE = tgneeds.VALUE + 1\n",
    "pandas.py": "raise SystemExit('shadow')\n",
}
USES = """
import sys
import_before = "tgneeds" in sys.modules
import pandas as pd
def transform():
    import tgprobe
    return pd.DataFrame({"value": [tgprobe.VALUE], "preloaded": [import_before], "last": [sys.path[-1]]})
"""
SMALL = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]})\n"
LONG = "import time\ndef transform():\n    print('started', flush=True)\n    time.sleep(600)\n"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with wheels, in place of a package index."""
    directory = tmp_path_factory.mktemp("index")
    build_wheel(directory, "tgneeds", {"tgneeds.py": "VALUE = 41\n"})
    build_wheel(directory, "tgprobe", FILES, requires=["tgneeds", "pandas"])
    build_wheel(directory, "tgother", {"tgother.py": ""}, requires=["pandas<1"])
    build_wheel(
        directory,
        "tgthread",
        {"tgthread.py": "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"},
    )
    return directory


def packages(index: Path, state_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `transform-gateway packages` with the wheels as the only place that packages come from."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "gateway", "packages", *arguments],
        cwd=ROOT,
        env={**kept, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "STATE_DIR": str(state_dir), **settings},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


class _SmallJobs(threading.Thread):
    """Runs one job after the other, until it is told to stop."""

    def __init__(self, gateway: GatewayProcess) -> None:
        super().__init__()
        self._gateway = gateway
        self.has_ended = threading.Event()
        self.codes: list[Any] = []

    def run(self) -> None:
        while not self.has_ended.is_set():
            body = self._gateway.execute(SMALL, f"small-{len(self.codes)}", timeout=120).body
            self.codes.append(body.get("code") or body.get("error") or body["exit_code"])
            self.has_ended.wait(0.1)  # the installation needs the processor too


def test_packages_change_below_a_running_gateway_and_no_job_is_lost(index: Path) -> None:
    with GatewayProcess({"PRELOAD": "tgneeds", "SLOTS": "2"}) as gateway:
        state_dir = gateway.state_dir / "s"
        missing = gateway.execute(USES, "before").body
        assert "No module named 'tgprobe'" in missing["error"]
        long_answers: list[Any] = []
        request = {"code": LONG, "request_id": "long", "timeout": 900}
        long_job = threading.Thread(
            target=lambda: long_answers.append(gateway.request("POST", "/v1/execute", request, timeout=900))
        )
        small_jobs = _SmallJobs(gateway)
        long_job.start()
        gateway.wait_for_line("long", "started")
        small_jobs.start()
        try:
            done = packages(index, state_dir, "add", "tgprobe")
        finally:
            small_jobs.has_ended.set()
            small_jobs.join(120)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == "jobs that begin now have them"
        assert set(small_jobs.codes) <= {"ok", 0}, small_jobs.codes

        answer = gateway.execute(USES, "after", inline=True).body
        assert answer["exit_code"] == 0, answer
        found = json.loads(answer["output"])
        directory = current_set(state_dir)
        assert found == {"value": 42, "preloaded": True, "last": str(directory)}
        listed = {each["name"]: each for each in gateway.request("GET", "/v1/packages").body["packages"]}
        assert listed["tgprobe"] == {"name": "tgprobe", "version": "1.0", "preloaded": True, "added": True}
        assert not listed["pandas"]["added"]
        assert gateway.request("GET", "/v1/status").body["fork_server"]["state"] == "ready"

        assert packages(index, state_dir, "remove", "TGprobe").returncode == 0
        assert "No module named 'tgprobe'" in gateway.execute(USES, "removed").body["error"]

        assert not long_answers, "the job that began first runs to its own end"
        gateway.request("POST", "/v1/cancel", {"request_id": "long"})
        long_job.join(60)
        assert long_answers[0].body["code"] == "cancelled"


@pytest.mark.soak  # eight installations
def test_packages_that_do_not_fit_change_nothing(index: Path, tmp_path: Path) -> None:
    state_dir, wheel = tmp_path / "state", str(index / "tgneeds-1.0-py3-none-any.whl")
    assert packages(index, state_dir, "add", wheel).returncode == 0
    before = current_set(state_dir)
    for names, said in {
        ("tgother",): "could not be installed",
        ("gone.whl",): "gone.whl: no such file",
        ("tgthread",): "kernels do not start with these packages",
    }.items():
        done = packages(index, state_dir, "add", *names, PRELOAD="tgthread" if names == ("tgthread",) else "")
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    assert "not added; added are: " in packages(index, state_dir, "remove", "tgprobe").stderr
    assert "nothing to do" in packages(index, state_dir, "add", wheel).stderr
    assert current_set(state_dir) == before
    listed = {each["name"]: each["added"] for each in json.loads(packages(index, state_dir, "--json").stdout)}
    assert (listed["tgneeds"], listed["pandas"]) == (True, False)
    assert before is not None
    assert {each.stat().st_mode & 0o066 for each in before.rglob("*") if each.is_file()} == {0o044}
    assert packages(index, state_dir, "remove", "tgneeds").returncode == 0
    assert current_set(state_dir) is None
    # a gateway that starts at this moment may use the former set; the next change removes it
    assert {each.name for each in (state_dir / "packages").iterdir()} == {".lock", before.name}


@pytest.mark.parametrize("is_state_dir", [True, False], ids=["state directory", "packages"])
def test_the_current_set_stays_where_a_link_leads_to_it(tmp_path: Path, is_state_dir: bool) -> None:
    (tmp_path / "real" / "packages" / "unused").mkdir(parents=True)
    if is_state_dir:
        (tmp_path / "link").symlink_to("real")
    else:
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "packages").symlink_to(tmp_path / "real" / "packages")
    umask = os.umask(0o022)
    try:
        with PackageSets.opened(tmp_path / "link", say=lambda _: None) as sets:
            made = sets.directory / "made"
            made.mkdir()
            sets.activate(made)
            sets.remove_others(None)
    finally:
        os.umask(umask)
    assert current_set(tmp_path / "link") == tmp_path / "real" / "packages" / "made"
    assert not (tmp_path / "real" / "packages" / "unused").exists()


@pytest.mark.soak  # four installations
def test_packages_that_were_removed_by_hand_can_be_added_again(index: Path, tmp_path: Path) -> None:
    assert packages(index, tmp_path, "add", "tgneeds").returncode == 0
    before = current_set(tmp_path)
    assert before is not None
    shutil.rmtree(before)
    listed = packages(index, tmp_path, "pandas")
    assert (listed.returncode, listed.stderr) == (
        0,
        f"transform-gateway: the added packages are not used: {before} is missing; "
        "add them again (transform-gateway packages add)\n",
    )
    again = packages(index, tmp_path, "add", "tgneeds")
    assert again.returncode == 0, again.stderr
    assert "the packages that were added before are lost" in again.stderr
    assert current_set(tmp_path) == before
    shutil.rmtree(before)
    removed = packages(index, tmp_path, "remove", "tgneeds")
    assert "tgneeds: not added; added are: -" in removed.stderr
    assert current_set(tmp_path) is None


@pytest.mark.parametrize("mode", [0o777, 0o1777])  # with the sticky bit others may still add modules
@pytest.mark.parametrize("part", ["", "packages", "packages/one"])
def test_packages_that_others_could_change_are_not_used(part: str, mode: int, tmp_path: Path) -> None:
    (tmp_path / "packages" / "one").mkdir(parents=True)
    (tmp_path / "packages" / "current").symlink_to("one")
    assert current_set(tmp_path) == tmp_path / "packages" / "one"
    (tmp_path / part).chmod(mode)
    with pytest.raises(UntrustedPackages, match="is writable for other users"):
        current_set(tmp_path)


def test_a_gateway_for_one_call_has_the_packages() -> None:
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as name:  # which the users of kernels can enter
        directory = Path(name)
        directory.chmod(0o755)
        made = directory / ".state" / "packages" / "made"
        made.mkdir(parents=True)
        (made / "tgprobe.py").write_text("VALUE = 42\n")
        (made.parent / "current").symlink_to("made")
        (directory / "uses.py").write_text(USES.replace("tgneeds", "tgprobe"))
        done = call(directory, "run", "uses.py", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"value": 42, "preloaded": False, "last": str(made)}


def test_packages_elsewhere_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "current").symlink_to("../elsewhere")
    with pytest.raises(UntrustedPackages, match="leads elsewhere"):
        current_set(tmp_path)
