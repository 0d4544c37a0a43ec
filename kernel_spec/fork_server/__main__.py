"""``python -P -m kernel_spec.fork_server <control descriptor>``: started by the launcher."""

import sys

from kernel_spec.fork_server.server import main

if __name__ == "__main__":
    sys.exit(main())
