"""`transform-gateway submit`: submit a job without waiting; `logs`, `status` and `cancel` take its id."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gateway.cli import common
from gateway.cli.job_options import add_job, job_inputs
from gateway.table_files.readable import ReadableFiles


def main(name: str, arguments: Sequence[str]) -> int:
    """Submit one transform and print its id."""
    parser = common.parser(
        name,
        "Submit a transform and print its id without waiting for its result. The gateway keeps the result for a "
        "while: `transform-gateway result ID --out FILE` fetches it.",
    )
    add_job(parser)
    common.add_gateway(parser)
    options = parser.parse_args(arguments)

    def submit() -> int:
        with tempfile.TemporaryDirectory(prefix="transform-submit-") as directory:
            inputs = job_inputs(options, None, ReadableFiles(Path(directory)))
            request_id = common.client_of(options).submit(
                inputs.code,
                inputs.tables,
                manifests=inputs.manifests,
                library=inputs.library,
                timeout=inputs.timeout,
                output_format=inputs.output_format,
                request_id=inputs.request_id,
                hold_minutes=inputs.hold_minutes,
                output_schema=inputs.output_schema,
            )
        sys.stdout.write(f"{request_id}\n")
        sys.stderr.write(
            f"submitted; `transform-gateway logs {request_id} --follow` shows its log, `transform-gateway result "
            f"{request_id} --out FILE` writes its result\n"
        )
        return 0

    return common.guarded(submit)
