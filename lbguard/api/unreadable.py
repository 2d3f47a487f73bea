"""Requests that are no message: refused by name. gRPC alone would answer INTERNAL, and log a trace for each."""

import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from lbguard.api.verdict_convert import InvalidField

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RefuseUnreadable(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic when run
    """Ends calls whose one request cannot be read with INVALID_ARGUMENT; streams of requests see to it themselves."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """See grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        read = _reader(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _refusing(handler.unary_stream), read, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(_refusing(handler.unary_unary), read, handler.response_serializer)


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return InvalidField("request", f"{len(data)} bytes", "a message of the call's kind")

    return read


def _refusing(serve: Callable[[Any, _Context], Any]) -> Callable[[Any, _Context], Any]:
    """Return what serves a call, but for a request that could not be read."""
    if not inspect.isasyncgenfunction(serve):

        async def answer(request: Any, context: _Context) -> Any:
            if isinstance(request, InvalidField):
                await _refuse(request, context)
            return await serve(request, context)

        return answer

    async def answer_all(request: Any, context: _Context) -> AsyncGenerator[Any, None]:
        if isinstance(request, InvalidField):
            await _refuse(request, context)
        async with contextlib.aclosing(serve(request, context)) as answers:
            async for each in answers:
                yield each

    return answer_all


async def _refuse(unreadable: InvalidField, context: _Context) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(unreadable))
    raise AssertionError("abort raises")
