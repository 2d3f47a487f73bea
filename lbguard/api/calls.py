"""Calls of one request: the request is read within a time limit, and the number of calls is bounded.

gRPC reads the request of such a call before it calls the handler. A peer that opens calls and sends nothing would hold
a place for each, without a limit, before the policy is checked. Therefore each handler is served as one of a stream of
requests, which is called at once; it reads the request within a time limit. At the bound the oldest waiting call is
ended, so that a peer that sends a request with the call always finds room. Each method has a bound of its own, of which
no peer may take all: readers of decisions cannot block the health service.
"""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from lbguard.api.verdicts.convert import InvalidField
from lbguard.api.verdicts.queue import Shares

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

REQUEST_WITHIN_S = 5.0
CALLS_AT_ONCE = 64
_UNREAD_AT_ONCE = 64


class RequestMissing(Exception):  # noqa: N818 (it names the answer)
    """No request came with a call; the text says why the wait ended."""


class Requests:
    """Reads the requests of calls, within a time each, and waits for a bounded number of them."""

    def __init__(self, within_s: float = REQUEST_WITHIN_S, at_once: int = _UNREAD_AT_ONCE) -> None:
        self._within_s = within_s
        self._at_once = at_once
        self._waiting: dict[asyncio.Future[None], None] = {}

    async def read(self, context: _Context) -> Any:
        """Return the request of a call.

        After an exception the read continues: gRPC ends it together with the call, and does not survive its
        cancellation.

        Raises:
            RequestMissing: it does not come.
        """
        reading = asyncio.ensure_future(context.read())
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may not be read any more
        given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= self._at_once:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            if not oldest.done():
                oldest.set_result(None)
        self._waiting[given_up] = None
        try:
            await asyncio.wait({reading, given_up}, timeout=self._within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting.pop(given_up, None)
        if not reading.done():
            why = "too many calls wait for theirs" if given_up.done() else f"none came within {self._within_s:g} s"
            raise RequestMissing(f"no request: {why}")
        request = reading.result()
        if request is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise RequestMissing("no request: the call ended without one")
        return request


class CallRooms(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic when run
    """Gives each method of a server its room. Services that see to their own bounds are left alone.

    Args:
        identity: returns the peer's identity, as its transport proved it.
        except_for: such a service, by its full name; empty: none.
        at_once: the room of each method, calls.
    """

    def __init__(
        self, identity: Callable[[_Context], str], *, except_for: str = "", at_once: int = CALLS_AT_ONCE
    ) -> None:
        self._identity = identity
        self._at_once = at_once
        self._except_for = f"/{except_for}/" if except_for else ""
        self._requests = Requests()
        self._rooms: dict[str, Shares] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """See grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or (self._except_for and method.startswith(self._except_for)):
            return handler  # type: ignore[no-any-return]
        room = self._rooms.setdefault(method, Shares(self._at_once))
        read, write = _reader(handler.request_deserializer), handler.response_serializer
        if handler.request_streaming:
            serve = handler.stream_stream if handler.response_streaming else handler.stream_unary
            first = None
        else:
            serve = handler.unary_stream if handler.response_streaming else handler.unary_unary
            first = self._requests
        bounded = self._bounded(serve, room, first)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(bounded, read, write)
        return grpc.stream_unary_rpc_method_handler(bounded, read, write)

    def _bounded(self, serve: Callable[[Any, _Context], Any], room: Shares, first: Requests | None) -> Any:
        """Return what serves a call within bounds; `first` reads its one request, or (None) there are many."""
        if inspect.isasyncgenfunction(serve):

            async def answer_all(requests: Any, context: _Context) -> AsyncGenerator[Any, None]:
                request = requests if first is None else await _read(first, context)
                with await self._place(room, context):
                    async with contextlib.aclosing(serve(request, context)) as answers:
                        async for each in answers:
                            yield each

            return answer_all

        async def answer(requests: Any, context: _Context) -> Any:
            request = requests if first is None else await _read(first, context)
            with await self._place(room, context):
                return await serve(request, context)

        return answer

    async def _place(self, room: Shares, context: _Context) -> contextlib.AbstractContextManager[None]:
        owner = self._identity(context)
        if not room.allows(owner):
            text = f"{room.of(owner)} calls of this kind are open already; at most {room.total} of all peers together"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        return _taken(room, owner)


@contextlib.contextmanager
def _taken(room: Shares, owner: str) -> Iterator[None]:
    room.add(owner)
    try:
        yield
    finally:
        room.remove(owner)


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return InvalidField("request", f"{len(data)} bytes", "a message of the call's kind")

    return read


async def _read(requests: Requests, context: _Context) -> Any:
    try:
        request = await requests.read(context)
    except RequestMissing as missing:
        await _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, str(missing))
    if isinstance(request, InvalidField):
        await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(request))
    return request


async def _refuse(context: _Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort raises")
