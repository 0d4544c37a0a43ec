"""Requests about jobs that another member of the cluster keeps: each member answers them by asking that one."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Concatenate, ParamSpec, TypeVar

from tornado.iostream import StreamClosedError

from gateway.core.errors import MemberDown, NotFound
from gateway.core.job import JobState, RequestId, Scope
from gateway.http.access.peer_connection import PeerConnection, for_peers
from gateway.http.access.tokens import Token, TokenKind
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.bodies.receivers import JsonBody
from gateway.jobs.peers import PeerPart, PeerRequest, Peers

#: Headers of a caller that change the answer.
PASSED_ON = ("Accept", "Content-Type", "If-None-Match", "Range", "X-Request-Id", "Traceparent")

#: Headers of an answer that belong to its connection.
OF_THE_CONNECTION = frozenset({"connection", "server", "date", "transfer-encoding"})

P = ParamSpec("P")
H = TypeVar("H", bound=BaseHandler)
Method = Callable[Concatenate[H, P], Awaitable[None]]

#: The job that a request is about: the gateway's own id, the caller's id in each type that it may have, or None.
Asked = str | tuple[RequestId, ...] | None


def anywhere(asked: Callable[..., Asked]) -> Callable[[Method[H, P]], Method[H, P]]:
    """Get the answer to a request from the member that keeps its job, also when another member asks.

    Parameters
    ----------
    asked : callable
        Gets the handler and the parameters of its path; returns the job that the request is about.

    Returns
    -------
    callable
        A decorator of a method of a handler.
    """

    def decorate(method: Method[H, P]) -> Method[H, P]:
        @functools.wraps(method)
        async def answer(handler: H, /, *args: P.args, **kwargs: P.kwargs) -> None:
            peers = handler.context.service.peers
            if peers is not None and not isinstance(handler.request.connection, PeerConnection):
                job = asked(handler, *args, **kwargs)
                if job is not None and await _is_answered(handler, peers, job):
                    return
            await method(handler, *args, **kwargs)

        return for_peers(answer)

    return decorate


def caller(handler: BaseHandler) -> Token:
    """Return the token of a request, also where the route needs none for other requests."""
    token = getattr(handler, "token", None)
    return token if token is not None else handler.context.guard.check(handler.request, TokenKind.READ)


def peer_request(handler: BaseHandler, peers: Peers, token: Token, body: bytes = b"") -> PeerRequest:
    """Return a request in the form for another member."""
    headers = {name: handler.request.headers[name] for name in PASSED_ON if name in handler.request.headers}
    headers["X-Request-Id"] = handler.call_id
    return PeerRequest(
        handler.request.method or "",
        handler.request.uri or "",
        headers,
        body,
        token.name,
        int(token.kind),
        peers.name,
    )


async def _owner(handler: BaseHandler, peers: Peers, job: str | tuple[RequestId, ...], scope: Scope) -> str | None:
    """Return the other member that keeps a job; None if this one does, or if the job is unknown."""
    service = handler.context.service
    if isinstance(job, str):
        try:
            return await peers.owner_of_job(job)
        except MemberDown:
            try:
                await service.get(job, scope)
            except NotFound:
                pass
            else:
                return None
            raise
    known = [record for each in job if (record := await service.find(each, scope)) is not None]
    if any(record.state is not JobState.FINISHED for record in known):
        return None
    try:
        return await peers.owner_of_request(job, scope)
    except MemberDown:
        if known:  # the newest job that this member knows of, and most likely the newest of all
            return None
        raise


async def _is_answered(handler: BaseHandler, peers: Peers, job: str | tuple[RequestId, ...]) -> bool:
    """Send the answer of the other member that keeps a job, if there is one."""
    token = caller(handler)
    owner = await _owner(handler, peers, job, token.scope)
    if owner is None:
        return False
    body = json.dumps(handler.body.value()).encode() if isinstance(handler.body, JsonBody) else b""
    await pass_on(handler, owner, peer_request(handler, peers, token, body))
    return True


async def pass_on(handler: BaseHandler, member: str, request: PeerRequest, *, unless: int = 0) -> bool:
    """Send the answer of another member, part by part; send nothing and return False if it has the status `unless`."""
    peers = handler.context.service.peers
    if peers is None:
        return False
    has_begun = False
    async with aclosing(peers.ask(member, request)) as parts:
        async for part in parts:
            if handler.client_disconnected:
                return True
            if not has_begun and part.status == unless:
                return False
            if not has_begun:
                _begin(handler, part)
                has_begun = True
            if part.data:  # an empty one would count as a body of a 304
                handler.write(part.data)
            if not part.is_last and not await _is_sent(handler):
                return True
    if not handler.client_disconnected:
        handler.finish()
    return True


def _begin(handler: BaseHandler, part: PeerPart) -> None:
    handler.set_status(part.status)
    for name, value in part.headers:
        if name.lower() not in OF_THE_CONNECTION:
            handler.set_header(name, value)


async def _is_sent(handler: BaseHandler) -> bool:
    try:
        await handler.flush()
    except StreamClosedError:
        handler.handle_disconnect()
        return False
    return True
