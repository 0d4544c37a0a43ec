"""``python -m gateway.companion --socket DESCRIPTOR --inputs DIRECTORY``: what the kernel's provisioner starts."""

from __future__ import annotations

import sys

from gateway.companion.service import main

sys.exit(main())
