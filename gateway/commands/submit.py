"""`transform-gateway submit`: hand over a job and go on; `logs`, `status` and `cancel` take its id."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gateway.commands import common
from gateway.commands.inputs import add_job, job_inputs


def main(name: str, arguments: Sequence[str]) -> int:
    """Submit one job and print its id."""
    parser = common.parser(
        name,
        "Hand over a transform and print its id without waiting for its end. The gateway keeps the result for a "
        "while: fetch it from /v1/results/ID/output.",
    )
    add_job(parser)
    common.add_gateway(parser)
    options = parser.parse_args(arguments)

    def submit() -> int:
        inputs = job_inputs(options, None)
        request_id = common.client_of(options).submit(
            inputs.code,
            inputs.tables,
            manifests=inputs.manifests,
            library=inputs.library,
            timeout=inputs.timeout,
            output_format=inputs.output_format,
            request_id=inputs.request_id,
            hold_minutes=inputs.hold_minutes,
        )
        sys.stdout.write(f"{request_id}\n")
        return 0

    return common.guarded(submit)
