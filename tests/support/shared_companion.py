"""A notebook's companion whose transforms run on a gateway that is up, instead of on one that the companion starts.

The start of a gateway takes longer than most notebooks. This file is run as a program, by the command that
`tests.support.notebook_kernel` gives to the provisioner; `transform_shim/notebook/test_companion.py` has the real companion.
"""

from __future__ import annotations

import os
import sys

from gateway.companion import runs, service


class SharedGateway:
    """Has the interface of `EphemeralGateway`, and starts and ends nothing."""

    is_running = True

    def __init__(self) -> None:
        self.url, self.token = os.environ["TEST_GATEWAY_URL"], os.environ["TEST_GATEWAY_TOKEN"]

    def __enter__(self) -> SharedGateway:
        return self

    def __exit__(self, *unused: object) -> None:
        pass


if __name__ == "__main__":
    runs.EphemeralGateway = SharedGateway  # type: ignore[assignment,misc]
    sys.exit(service.main())
