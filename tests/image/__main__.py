"""``python -m tests.image [-k WORD]``: build the image and try it in every way that it is promised to run.

What an operator does is done through the Makefile's own targets. Everything made on the way is removed: containers,
image, base, the engine's storage. Exit status 0 only if every check passed; without an engine there is nothing to pass.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.image import checks
from tests.image.base import base_image
from tests.image.container import Container
from tests.image.engine import BUILD_SECONDS, Engine, EngineError, engine

LARGEST_IMAGE_BYTES = 700_000_000
TAG = "localhost/transform-gateway-test"

#: a small package without dependencies; a check imports it in a job
EXTRA_PACKAGES = "tabulate"


class Run:
    """Counts what passed and says how long each took."""

    def __init__(self, word: str) -> None:
        self.word, self.passed, self.failed = word, 0, 0

    def check(self, name: str, function: Callable[[], str | None]) -> None:
        if self.word not in name:
            return
        began = time.monotonic()
        try:
            said = function()
        except (AssertionError, EngineError, OSError, KeyError, ValueError) as error:
            self.failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"   FAILED {name} ({where.name}, line {where.lineno}): {error}", flush=True)
            return
        self.passed += 1
        print(f"   ok     {name}: {said or 'holds'} ({time.monotonic() - began:.1f} s)", flush=True)


def build(container_engine: Engine) -> None:
    began = time.monotonic()
    base = base_image(container_engine)
    print(f"== base {base}, {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    done = container_engine.make(
        "docker-build", seconds=BUILD_SECONDS, IMAGE=TAG, BASE=base, EXTRA_PACKAGES=EXTRA_PACKAGES,
        BUILD_OPTIONS=container_engine.build_options,
    )  # fmt: skip
    if done.returncode != 0:
        raise EngineError(f"make docker-build: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    print(f"== built in {time.monotonic() - began:.0f} s", flush=True)


def try_all(container_engine: Engine, run: Run) -> None:
    size = int(container_engine.call("image", "inspect", TAG, "--format", "{{.Size}}"))
    print(f"== image size {size / 1e6:.0f} MB", flush=True)
    run.check("size", lambda: checks.at_most(size, LARGEST_IMAGE_BYTES, "bytes"))
    run.check("refuses to start without a token", lambda: checks.refuses_without_token(container_engine, TAG))

    print("== as an ordinary container, with five capabilities", flush=True)
    with Container(container_engine, TAG) as container:
        run.check("start to healthy", lambda: checks.restart_is_fast(container))
        run.check("tier B", lambda: checks.has_tier(container, "B"))
        run.check("users", lambda: checks.only_the_launcher_is_root(container))
        run.check("packages", lambda: checks.packages_work(container))
        run.check("limits", lambda: checks.limits_hold_and_nothing_is_left(container))
        run.check("health check", lambda: checks.health_check_passes(container))
        run.check("smoke", lambda: checks.smoke(container))
        run.check("conformance", lambda: checks.conformance(container))
        run.check("make docker-logs and docker-stop", lambda: checks.logs_and_stop(container))

    print("== as Metabase's quickstart starts it, with the embedded S3", flush=True)
    with Container(container_engine, TAG, "--env ENABLE_INTERNAL_S3=true") as container:
        run.check("start to healthy with S3", lambda: f"{container.restart():.1f} s")
        run.check("S3 to S3", lambda: checks.from_s3_to_s3(container))

    print("== with a read-only root", flush=True)
    with Container(container_engine, TAG, "--read-only --tmpfs /tmp --env ENABLE_INTERNAL_S3=true") as container:
        run.check("tier B, read-only", lambda: checks.has_tier(container, "B"))
        run.check("S3 to S3, read-only", lambda: checks.from_s3_to_s3(container))
        run.check("limits, read-only", lambda: checks.limits_hold_and_nothing_is_left(container))

    print("== as any user, with a read-only root and no capability", flush=True)
    with Container(container_engine, TAG, "--user 12345:12345 --read-only --tmpfs /tmp", CAPABILITIES="") as container:
        run.check("tier C", lambda: checks.has_tier(container, "C"))
        run.check("packages, tier C", lambda: checks.packages_work(container))
        run.check("limits, tier C", lambda: checks.limits_hold_and_nothing_is_left(container))

    print("== with the official image's further variables", flush=True)
    with Container(container_engine, TAG, "--env DISABLE_LIMITS=true --env RUN_MODE=microvm") as container:
        run.check("DISABLE_LIMITS, RUN_MODE", lambda: checks.no_limits_and_an_answer_at_once(container))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make docker-test", description=__doc__)
    parser.add_argument("-k", dest="word", default="", help="only the checks with this word in their name")
    options = parser.parse_args()
    run, began = Run(options.word), time.monotonic()
    # below /tmp and short: a container engine's sockets have a longest path too
    scratch = Path(tempfile.mkdtemp(prefix="tg-image-", dir="/tmp"))
    try:
        with engine(scratch) as container_engine:
            print(f"== engine: {' '.join(container_engine.command[:1])}", flush=True)
            try:
                build(container_engine)
                try_all(container_engine, run)
            finally:
                with contextlib.suppress(EngineError):
                    container_engine.call("rmi", "--force", TAG, check=False)
    except EngineError as error:
        print(f"docker-test: {error}", file=sys.stderr)
        run.failed += 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"\n{run.passed} passed, {run.failed} failed", flush=True)
    print(f"docker-test took {time.monotonic() - began:.0f} s", flush=True)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
