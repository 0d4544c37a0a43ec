"""One exception for each code of a refusal: the gateway's ``queue_full`` is raised as `QueueFull`."""

from __future__ import annotations

from gateway.client.errors import GatewayRefused
from gateway.core import errors


class BadRequest(GatewayRefused):
    code = errors.BadRequest.code


class Unauthorized(GatewayRefused):
    code = errors.Unauthorized.code


class Forbidden(GatewayRefused):
    code = errors.Forbidden.code


class InsufficientScope(GatewayRefused):
    code = errors.InsufficientScope.code


class NotFound(GatewayRefused):
    code = errors.NotFound.code


class MethodNotAllowed(GatewayRefused):
    code = errors.MethodNotAllowed.code


class Conflict(GatewayRefused):
    code = errors.Conflict.code


class IdempotencyKeyReused(GatewayRefused):
    code = errors.KeyReused.code


class TooLarge(GatewayRefused):
    code = errors.TooLarge.code


class UnsupportedMediaType(GatewayRefused):
    code = errors.UnsupportedMediaType.code


class QueueFull(GatewayRefused):
    code = errors.QueueFull.code


class ShuttingDown(GatewayRefused):
    code = errors.ShuttingDown.code


class Paused(GatewayRefused):
    code = errors.Paused.code


class StoreFailed(GatewayRefused):
    code = errors.StoreFailed.code


class DiskFull(GatewayRefused):
    code = errors.DiskFull.code


class StorageDown(GatewayRefused):
    code = errors.StorageDown.code


class BrokerDown(GatewayRefused):
    code = errors.BrokerDown.code


class MemberDown(GatewayRefused):
    code = errors.MemberDown.code


class TooManyConnections(GatewayRefused):
    code = errors.TooManyConnections.code


class Internal(GatewayRefused):
    code = errors.GatewayError.code
