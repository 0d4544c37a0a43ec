"""The HTTP face: routes, checks of what comes in, and the shape of what goes out. Runs nothing itself."""

from gateway.http.application import make_app, server_options

__all__ = ["make_app", "server_options"]
