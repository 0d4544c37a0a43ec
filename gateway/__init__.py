"""Transform Gateway: an HTTP service that runs each Metabase Python transform in a fresh, sandboxed IPython kernel."""

from gateway.core.version import VERSION as __version__

__all__ = ["__version__"]
