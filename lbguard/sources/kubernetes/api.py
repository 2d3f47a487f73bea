"""Requests to the Kubernetes API: lists in pages, and watches.

lightkube makes the client: configuration, certificates and tokens, on httpx2. Lists and watches are made here. Its own
watch asks for no bookmarks, waits on a silent connection for ever, dials again without a pause when the server ends it,
and takes more characters than the line feed for the end of an event.
"""

import asyncio
import json
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import httpx2
from lightkube.config.client_adapter import AsyncClient, ConnectionParams, verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ConfigError

from lbguard.sources.kubernetes.address import (
    CUT,
    FORBIDDEN,
    MISCONFIGURED,
    NOT_FOUND,
    TIMEOUT,
    UNAUTHORIZED,
    UNREACHABLE,
    UNUSABLE,
    ApiAddress,
    ApiError,
    Resource,
    Times,
    WatchEvent,
)
from lbguard.sources.kubernetes.lines import LineSplitter, LineTooLongError

_PAGE_OBJECTS = 100
_PAGES_MAX = 1000
_LIST_BYTES_MAX = 32 * 2**20  # about 100,000 endpoints
_ERROR_BYTES_MAX = 64 * 2**10
_LARGE_BYTES = 64 * 2**10  # larger documents are parsed in a thread
_CONNECT_S = 5.0
_SHOWN = 300


class Api:
    """Requests of one session; `open_api` makes it."""

    def __init__(self, client: httpx2.AsyncClient, address: ApiAddress, resource: Resource, times: Times) -> None:
        self._client = client
        self._address = address
        self._resource = resource
        self._times = times

    async def list(self) -> tuple[list[Mapping[str, Any]], str]:
        """Return all objects, and the version of the list.

        The request names no version, so the server answers from its database, not from a cache that may be old.

        Raises:
            ApiError: it cannot be had as a whole.
        """
        found: list[Mapping[str, Any]] = []
        query = {"limit": str(_PAGE_OBJECTS)}
        room = _LIST_BYTES_MAX
        for _ in range(_PAGES_MAX):
            with _explained():
                async with asyncio.timeout(self._times.page_s), self._get(query) as response:
                    body, whole = await _read(response, room)
            room -= len(body)
            if not whole:
                raise ApiError(UNUSABLE, f"the list is longer than {_LIST_BYTES_MAX} bytes")
            objects, version, following = _page(await _parse(body))
            found += objects
            if not following:
                return found, version
            query["continue"] = following
        raise ApiError(UNUSABLE, f"the list has more than {_PAGES_MAX} pages")

    async def watch(self, version: str, observe: Callable[[WatchEvent], None]) -> None:
        """Pass on the events after a version, until the server ends the watch.

        Raises:
            ApiError: the watch broke off; its kind is GONE when the version is too old.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(self._times.watch_s))),
        }
        splitter = LineSplitter()
        limit = asyncio.timeout(self._times.watch_s + self._times.late_s)
        with _explained():
            async with limit, self._get(query) as response, aclosing(response.aiter_raw()) as pieces:
                async for piece in pieces:
                    for line in splitter.feed(piece):
                        observe(_event(await _parse(line)))
        if splitter.cut:
            raise ApiError(CUT, "the watch was cut in the middle of an event")

    @asynccontextmanager
    async def _get(self, query: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        labels = {"labelSelector": self._resource.labels} if self._resource.labels else {}
        # A compressed answer could be longer than its bounds say.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        path = self._resource.path
        async with self._client.stream("GET", path, params={**query, **labels}, headers=headers) as response:
            if response.status_code != httpx2.codes.OK:
                async with asyncio.timeout(_CONNECT_S):
                    body, _ = await _read(response, _ERROR_BYTES_MAX)
                try:
                    status = await _parse(body)
                except ApiError:
                    status = {}
                raise self._refusal(response.status_code, status)
            yield response

    def _refusal(self, code: int, status: Mapping[str, Any]) -> ApiError:
        """Return a refusal with what to do about it."""
        resource = self._resource
        remedies = {
            UNAUTHORIZED: f"the token of {self._address.account_name} is not accepted",
            FORBIDDEN: f"a Role in namespace {resource.namespace}, bound to the service account, has to allow get, list"
            f" and watch of {resource.plural} (apiGroups: {resource.group})",
            NOT_FOUND: f"{resource.full_name}/{resource.version} is not installed there",
        }
        parts = [f"HTTP {code}", remedies.get(str(code), ""), _said(status)]
        return ApiError(str(code), ": ".join(part for part in parts if part))


@asynccontextmanager
async def open_api(address: ApiAddress, resource: Resource, times: Times) -> AsyncIterator[Api]:
    """Open a client for one session: certificates are read now, and the token again when it is refused.

    Raises:
        ApiError: the configuration cannot be used.
    """
    for name in ("httpx2", "httpcore2"):  # they log each request
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        config = await asyncio.to_thread(_configuration, address)
        verify = await asyncio.to_thread(_tls, config)
        # lightkube declares the transport of its synchronous client for both.
        transport: Any = httpx2.AsyncHTTPTransport(verify=verify, trust_env=False, socket_options=_keepalive())
        timeout = httpx2.Timeout(None, connect=_CONNECT_S, write=_CONNECT_S)
        client = AsyncClient(config, ConnectionParams(timeout=timeout, trust_env=False, transport=transport))
    except (ConfigError, httpx2.InvalidURL, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ApiError(MISCONFIGURED, f"{address.account_name} cannot be used: {_cause(error)}") from None
    async with client:
        yield Api(client, address, resource, times)


def _configuration(address: ApiAddress) -> SingleConfig:
    if address.kubeconfig is not None:
        config = KubeConfig.from_file(address.kubeconfig)
    else:
        token, ca = address.account / "token", address.account / "ca.crt"
        config = KubeConfig.from_one(
            cluster=Cluster(server=address.url, certificate_auth=str(ca) if ca.exists() else None),
            user=User(token_file=str(token) if token.exists() else None),
        )
    chosen = config.get()
    if chosen is None:
        raise ConfigError("no current context")
    return chosen if chosen.user is not None else chosen._replace(user=User())


def _tls(config: SingleConfig) -> ssl.SSLContext:
    assert config.user is not None
    return verify_cluster(config.cluster, config.user, config.abs_file, trust_env=False)


def _keepalive() -> list[tuple[int, int, int]]:
    """Return the options of sockets with which a connection to a vanished server ends within half a minute."""
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000),
    ]


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors of a request into `ApiError`."""
    try:
        yield
    except (TimeoutError, httpx2.TimeoutException):
        raise ApiError(TIMEOUT, "no answer in time") from None
    except LineTooLongError as error:
        raise ApiError(UNUSABLE, str(error)) from None
    except httpx2.LocalProtocolError:  # its text would show the token
        raise ApiError(MISCONFIGURED, "the token is not a line of text") from None
    except (httpx2.RemoteProtocolError, httpx2.ReadError) as error:
        raise ApiError(CUT, f"the connection was cut: {_cause(error)}") from None
    except httpx2.HTTPError as error:
        raise ApiError(UNREACHABLE, f"cannot be reached: {_cause(error)}") from None
    except (ConfigError, OSError, ValueError) as error:  # the token is read here
        raise ApiError(MISCONFIGURED, f"the token cannot be read: {_cause(error)}") from None


def _cause(error: BaseException) -> str:
    """Return what an error says; of an error of the network, the system's own words, which libraries hide."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError | socket.gaierror) and cause.strerror:
            return cause.strerror
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


async def _read(response: httpx2.Response, bytes_max: int) -> tuple[bytes, bool]:
    """Return a body, and whether it is whole."""
    body = bytearray()
    async with aclosing(response.aiter_raw()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > bytes_max:
                return bytes(body[:bytes_max]), False
    return bytes(body), True


async def _parse(content: bytes) -> Mapping[str, Any]:
    """Parse a document, a large one in a thread.

    Raises:
        ApiError: it is none.
    """
    try:
        parsed = await asyncio.to_thread(json.loads, content) if len(content) > _LARGE_BYTES else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(UNUSABLE, f"the answer is not JSON: {str(error)[:_SHOWN]}") from None
    if not isinstance(parsed, dict):
        raise ApiError(UNUSABLE, "the answer is not a JSON object")
    return parsed


def _page(page: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str, str]:
    """Return the objects of a page, the version of the list, and the token of the next page.

    Raises:
        ApiError: it is none.
    """
    objects, metadata = page.get("items"), page.get("metadata")
    if objects is None:
        objects = []
    if not isinstance(objects, list) or not isinstance(metadata, dict) or not str(page.get("kind")).endswith("List"):
        raise ApiError(UNUSABLE, "the answer is not a list of objects")
    if not all(isinstance(each, dict) for each in objects):
        raise ApiError(UNUSABLE, "the list holds something that is not an object")
    version, following = metadata.get("resourceVersion"), metadata.get("continue")
    if not isinstance(version, str) or not version:
        raise ApiError(UNUSABLE, "the list names no version")
    return objects, version, following if isinstance(following, str) else ""


def _event(event: Mapping[str, Any]) -> WatchEvent:
    """Return an event of a watch.

    Raises:
        ApiError: it reports an error, or is of another form.
    """
    kind, content = event.get("type"), event.get("object")
    if not isinstance(kind, str) or not isinstance(content, dict):
        raise ApiError(UNUSABLE, "an event of the watch has another form")
    if kind == "ERROR":
        code = content.get("code")
        raise ApiError(
            str(code), ": ".join(part for part in (f"the watch ended with error {code}", _said(content)) if part)
        )
    return WatchEvent(kind=kind, object=content)


def _said(status: Mapping[str, Any]) -> str:
    message = status.get("message")
    return f"it says {message[:_SHOWN]!r}" if isinstance(message, str) and message else ""
