"""The Python client of a gateway. The names in ``__all__`` are its public API."""

from gateway.client import failures, refusals
from gateway.client.async_client import AsyncTransformClient
from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused, GatewayUnreachable, TransformError, TransformFailed, VersionMismatch
from gateway.client.request import format_of
from gateway.client.result import TransformResult

__all__ = [
    "AsyncTransformClient",
    "GatewayRefused",
    "GatewayUnreachable",
    "TransformClient",
    "TransformError",
    "TransformFailed",
    "TransformResult",
    "VersionMismatch",
    "failures",
    "format_of",
    "refusals",
]
