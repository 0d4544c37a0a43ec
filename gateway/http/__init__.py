"""The HTTP face: routes, checks of what comes in, and the shape of what goes out. Runs nothing itself."""

from gateway.http.application import make_app
from gateway.http.server import make_server

__all__ = ["make_app", "make_server"]
