"""``python -m gateway.companion --socket DESCRIPTOR --inputs DIRECTORY``, started by the kernel's provisioner."""

from __future__ import annotations

import sys

from gateway.companion.service import main

sys.exit(main())
