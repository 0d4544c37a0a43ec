"""What is counted and swept of a seat where the host gives no private root."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_spec import confinement
from kernel_spec.containment import Containment, end_leftovers
from kernel_spec.limits import Limits
from kernel_spec.messages import SeatInfo
from kernel_spec.removal import remove_tree
from kernel_spec.sandbox import LAYERS, Identity, LayerReport, Report, State, Tier
from kernel_spec.sandbox.plan import IDENTITY, LANDLOCK, MEMORY_WATCH, MOUNT_NAMESPACE, NAMESPACES
from tests.kernel_spec.conftest import Desk

# nobody else's, also of no other test: everything that it has is killed and removed
USER = Identity(60176, 60176)
SHM = Path("/dev/shm")
MIB = 1 << 20


def seat_of(directory: Path) -> SeatInfo:
    places = [str(directory / name) for name in ("", "ipc", "inputs", "work", "out")]
    return SeatInfo("0badcafe", USER.uid, USER.gid, *places)


@pytest.fixture
def left() -> Iterator[tuple[Path, Path]]:
    """A file and a directory in /dev/shm that a job has left."""
    if os.geteuid() != 0:
        pytest.skip("a user of its own takes root")
    file, directory = (SHM / f"tg-test-{os.getpid()}-{name}" for name in ("file", "directory"))
    file.write_bytes(b"left by a job")
    directory.mkdir()
    (directory / "deeper").write_bytes(b"left as well")
    for path in (file, directory):
        os.chown(path, USER.uid, USER.gid)
    yield file, directory
    file.unlink(missing_ok=True)
    remove_tree(directory)


def test_shared_memory_of_a_seat_goes_with_it(left: tuple[Path, Path], tmp_path: Path) -> None:
    Containment(seat_of(tmp_path), own_uid=True).dissolve()
    assert [path for path in left if path.exists()] == []


def test_shared_memory_that_a_dead_launcher_left_goes_at_the_next_start(left: tuple[Path, Path]) -> None:
    end_leftovers(USER.uid)
    assert [path for path in left if path.exists()] == []


def test_hidden_memory_is_charged_to_the_seat(tmp_path: Path) -> None:
    plain = Containment(seat_of(tmp_path), own_uid=False)
    charged = Containment(seat_of(tmp_path), own_uid=False, hidden_bytes=lambda: 7 * MIB)
    assert plain.usage(Limits(), 0).memory_bytes == 0
    assert charged.usage(Limits(), 0).memory_bytes == 7 * MIB


def report(watch: State, without: frozenset[str]) -> Report:
    lines = tuple(LayerReport(layer, State.OFF if layer in without else State.ON, "") for layer in LAYERS)
    lines = tuple(replace(line, state=watch) if line.layer == MEMORY_WATCH else line for line in lines)
    return Report(Tier.STANDARD, lines, (), allow_network=False, seconds=0.0)


@pytest.mark.parametrize(
    ("watch", "without", "own_uids", "counts"),
    [
        (State.DEGRADED, frozenset({MOUNT_NAMESPACE}), True, True),
        (State.ON, frozenset({MOUNT_NAMESPACE}), True, False),
        (State.DEGRADED, frozenset(), True, False),
        (State.DEGRADED, frozenset({MOUNT_NAMESPACE, IDENTITY}), False, False),
        (State.DEGRADED, frozenset({MOUNT_NAMESPACE, IDENTITY, LANDLOCK}), False, True),
    ],
    ids=["ordinary container", "may inspect", "private root", "closed by Landlock", "open to all"],
)
def test_hidden_memory_is_summed_up_only_where_a_job_can_have_it(
    watch: State, without: frozenset[str], own_uids: bool, counts: bool
) -> None:
    found = report(watch, without)
    hidden_bytes = confinement._watch_hidden(found, set(found.active), own_uids=own_uids)
    with (SHM / f"tg-test-{os.getpid()}-hidden").open("wb") as file:
        Path(file.name).unlink()
        file.write(bytes(8 * MIB))
        file.flush()
        # others on the machine may free or take some at the same time
        assert (hidden_bytes() > 4 * MIB) is counts


def test_job_runs_to_its_end_where_proc_is_closed_to_it(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(seats=2, fork_server=False, without_layers=(*NAMESPACES, IDENTITY))
    if LANDLOCK not in desk.launcher.hello.layers:
        pytest.skip("this kernel has no Landlock, which is what closes /proc here")
    with desk.kernel() as kernel:
        out_dir, work_dir = Path(kernel.process.seat.out_dir), kernel.process.seat.work_dir
        assert "PermissionError" in kernel.run("try: open('/proc/self/status')\nexcept OSError as e: print(repr(e))")
        request = {
            **{"version": 1, "code": "import pandas as pd\ndef transform(): return pd.DataFrame({'x': [1]})"},
            **{"library": {}, "tables": [], "output_format": "jsonl", "work_dir": work_dir, "limits": {}},
            **{"output_path": str(out_dir / "output"), "manifest_path": str(out_dir / "manifest.json")},
            "result_path": str(out_dir / "result.json"),
        }
        kernel.run(f"from transform_shim.job import run; run({json.dumps(request)!r})")
        result = json.loads((out_dir / "result.json").read_bytes())
        assert (result["outcome"], result["rows"]) == ("ok", 1)
        assert result["peak_memory_bytes"] > 10 * MIB
        assert (out_dir / "output").read_bytes() == b'{"x":1}\n'
