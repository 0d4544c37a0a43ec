"""The version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("transform-gateway")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0+unknown"
