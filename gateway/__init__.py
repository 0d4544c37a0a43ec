"""Transform Gateway: an HTTP service that runs each Metabase Python transform in a fresh, sandboxed IPython kernel."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("transform-gateway")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
