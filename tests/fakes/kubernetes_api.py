"""A small working model of the Kubernetes API server: real HTTP on the loopback, with faults by name.

What it models of the real one: one revision for all objects; lists in pages (`limit`, `continue`) that show one
revision; label selectors of the form `key in (a,b)`; watches from a revision on, with bookmarks where they are allowed,
that end after `timeoutSeconds`; 410 for a revision that was compacted, as a status or as an event; bearer tokens; 403
with the words of its authorizer, 404 for a kind that is not installed; a restart that ends every connection.
"""

import asyncio
import contextlib
import copy
import json
import re
import socket
import ssl
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

FAULTS = frozenset(
    {
        "cut",
        "cut_in_line",
        "end_at_once",
        "expired_page",
        "endless_line",
        "garbage",
        "gone_event",
        "gone_status",
        "not_an_object",
        "slow",
        "unavailable",
        "unknown_event",
        "wrong_list",
    }
)
_PATH = re.compile(r"/apis/(?P<group>[^/]+)/(?P<version>[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)")
_SELECTOR = re.compile(r"(?P<key>\S+) in \((?P<values>[^)]*)\)")


def service_slice(
    service: str, *endpoints: Mapping[str, Any], name: str = "", family: str = "IPv4", namespace: str = "default"
) -> Object:
    """Return an EndpointSlice of a Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{service}-{family.lower()}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "endpoints": list(endpoints),
    }


def endpoint(pod: str, *addresses: str, ready: bool | None = True, terminating: bool | None = None) -> Object:
    """Return an endpoint of an EndpointSlice that refers to a pod."""
    conditions = {"ready": ready, "serving": ready, "terminating": terminating}
    return {
        "addresses": list(addresses),
        "conditions": {name: value for name, value in conditions.items() if value is not None},
        "targetRef": {"kind": "Pod", "name": pod, "namespace": "default", "uid": f"uid-of-{pod}"},
    }


def group_slice(
    group: str, *endpoints: Mapping[str, Any], name: str = "", gateway: str = "gateway-a", namespace: str = "default"
) -> Object:
    """Return a LoadBalancerEndpointSlice of Meridio-2."""
    return {
        "apiVersion": "meridio-2.nordix.org/v1alpha1",
        "kind": "LoadBalancerEndpointSlice",
        "metadata": {"name": name or f"{group}-1", "namespace": namespace},
        "spec": {
            "distributionGroupName": group,
            "gatewayRef": {"name": gateway, "namespace": namespace},
            "endpoints": list(endpoints),
        },
    }


def member(pod: str, identifier: int | None, *addresses: str, ready: bool = True) -> Object:
    """Return an endpoint of a LoadBalancerEndpointSlice."""
    families = [{"ip": ip, "family": "IPv6" if ":" in ip else "IPv4"} for ip in addresses]
    entry: Object = {"target": {"name": pod, "uid": f"uid-of-{pod}"}, "addresses": families, "ready": ready}
    return entry if identifier is None else {**entry, "identifier": identifier}


@dataclass(slots=True)
class Request:
    """One request, as it came."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def watches(self) -> bool:
        return self.query.get("watch") == "true"


@dataclass(slots=True)
class _Change:
    revision: int
    kind: str
    plural: str
    object: Object


@dataclass(slots=True)
class FakeKubernetesApi:
    """Holds objects, serves lists and watches, and fails as told.

    `token`: the only one that is accepted; empty: any. `tls`: of the server, for the name localhost. `forbidden`: what
    it says to every request instead of an answer. `kinds`: the plurals that are installed. Faults of `fail` hold until
    `heal`; those of `fail_once` for one request. `slow` waits for `go_on`. A fault of watches leaves lists alone,
    except `unavailable`, `garbage` and `slow`.
    """

    kinds: set[str] = field(default_factory=lambda: {"endpointslices", "loadbalancerendpointslices"})
    token: str = ""
    forbidden: bool = False
    page_objects_max: int = 500
    tls: ssl.SSLContext | None = None
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    answered: Counter[int] = field(default_factory=Counter)
    revision: int = 100
    port: int = 0
    watches: int = 0
    _compacted: int = 0
    _history: list[_Change] = field(default_factory=list)
    _bookmarks: list[int] = field(default_factory=list)
    _pages: dict[str, tuple[int, list[Object]]] = field(default_factory=dict)
    _faults: dict[str, bool] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _server: asyncio.Server | None = None
    _connections: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" if self.tls is None else f"https://localhost:{self.port}"

    @property
    def lists(self) -> list[Request]:
        """The requests for lists, with each page."""
        return [request for request in self.requests if not request.watches]

    async def start(self, within: AbstractContextManager[object] | None = None) -> str:
        """Serve the loopback, on the same port as before; return the URL. `within`: enters another namespace."""
        with within if within is not None else contextlib.nullcontext():
            listener = socket.create_server(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._accept, sock=listener, ssl=self.tls)
        self.port = listener.getsockname()[1]
        return self.url

    async def stop(self) -> None:
        """End the server and every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """End every connection, and go on serving."""
        for writer in list(self._connections):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fail(self, fault: str) -> None:
        """Fail until `heal`."""
        assert fault in FAULTS, fault
        self._faults[fault] = True

    def fail_once(self, fault: str) -> None:
        """Fail at the next request that the fault concerns."""
        assert fault in FAULTS, fault
        self._faults[fault] = False

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    async def put(self, *objects: Object) -> None:
        """Store objects, new ones or in place of older versions."""
        for each in objects:
            item = copy.deepcopy(each)
            plural, name = f"{item['kind'].lower()}s", item["metadata"]["name"]
            kind = "MODIFIED" if (plural, name) in self.objects else "ADDED"
            self._record(kind, plural, item)
            self.objects[plural, name] = item
        await self._wake()

    async def delete(self, *objects: Object) -> None:
        """Delete objects, by their kinds and names."""
        for each in objects:
            plural, name = f"{each['kind'].lower()}s", each["metadata"]["name"]
            self._record("DELETED", plural, copy.deepcopy(self.objects.pop((plural, name))))
        await self._wake()

    async def bookmark(self) -> None:
        """Tell every watch that allows it where it stands; the revision goes on, as with changes of other objects."""
        self.revision += 1
        self._bookmarks.append(self.revision)
        await self._wake()

    def compact(self) -> None:
        """Forget all changes up to now: a watch from an earlier revision is refused."""
        self.revision += 1
        self._compacted = self.revision
        self._history.clear()
        self._pages.clear()

    def _record(self, kind: str, plural: str, item: Object) -> None:
        self.revision += 1
        item["metadata"]["resourceVersion"] = str(self.revision)
        self._history.append(_Change(self.revision, kind, plural, copy.deepcopy(item)))

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _has(self, fault: str) -> bool:
        if fault not in self._faults:
            return False
        if not self._faults[fault]:
            del self._faults[fault]
        return True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        try:
            while request := await self._request(reader):
                self.requests.append(request)
                await self._answer(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._connections.discard(writer)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Request | None:
        line = await reader.readline()
        if not line:
            return None
        headers: dict[str, str] = {}
        while (header := await reader.readline()).strip():
            name, _, value = header.decode().partition(":")
            headers[name.strip().lower()] = value.strip()
        url = urlsplit(line.decode().split()[1])
        return Request(url.path, {name: values[0] for name, values in parse_qs(url.query).items()}, headers)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if self._has("slow"):
            await self.go_on.wait()
        found = _PATH.fullmatch(request.path)
        plural = found["plural"] if found else ""
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            await self._refuse(writer, 401, "Unauthorized")
        elif self.forbidden:
            await self._refuse(writer, 403, f'{plural} is forbidden: User "lbguard" cannot list resource "{plural}"')
        elif found is None or plural not in self.kinds:
            await self._refuse(writer, 404, "the server could not find the requested resource")
        elif self._has("unavailable"):
            await self._refuse(writer, 503, "etcd leader changed")
        elif self._has("garbage"):
            await self._send(writer, 200, b"<html>who asks?</html>", "text/html")
        elif request.watches:
            await self._watch(request, found["namespace"], plural, writer)
        else:
            await self._list(request, found["namespace"], plural, writer)

    async def _list(self, request: Request, namespace: str, plural: str, writer: asyncio.StreamWriter) -> None:
        if self._has("wrong_list"):
            await self._send(writer, 200, json.dumps({"kind": "Status", "metadata": {}}).encode())
            return
        token = request.query.get("continue", "")
        if token and (token not in self._pages or self._has("expired_page")):
            await self._refuse(writer, 410, "The provided continue parameter is too old", "Expired")
            return
        if token:
            revision, rest = self._pages.pop(token)
        else:
            stored = sorted(self.objects.items())
            rest = [item for (kind, _), item in stored if kind == plural and _selected(item, namespace, request)]
            revision = self.revision
        room = min(int(request.query.get("limit", self.page_objects_max)), self.page_objects_max)
        metadata: Object = {"resourceVersion": str(revision)}
        if len(rest) > room:
            metadata["continue"] = f"page-{len(self.requests)}"
            self._pages[metadata["continue"]] = revision, rest[room:]
        page: list[Any] = copy.deepcopy(rest[:room])
        for item in page:  # a list does not repeat them in each item
            del item["kind"], item["apiVersion"]
        if self._has("not_an_object"):
            page.append("not an object")
        document = {"kind": "AnyList", "apiVersion": "v1", "metadata": metadata, "items": page or None}
        await self._send(writer, 200, json.dumps(document).encode())

    async def _watch(self, request: Request, namespace: str, plural: str, writer: asyncio.StreamWriter) -> None:
        at = int(request.query["resourceVersion"])
        if self._has("gone_status"):
            await self._refuse(writer, 410, "too old resource version", "Expired")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.answered[200] += 1
        if at < self._compacted or self._has("gone_event"):
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old resource version: {at}"}
            self._write_event(writer, "ERROR", status)
        elif not self._has("end_at_once"):
            self.watches += 1
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(float(request.query.get("timeoutSeconds", "1800"))):
                        await self._follow(request, namespace, plural, writer, at)
            finally:
                self.watches -= 1
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _follow(
        self, request: Request, namespace: str, plural: str, writer: asyncio.StreamWriter, at: int
    ) -> None:
        while True:
            for change in [change for change in self._history if change.revision > at]:
                at = change.revision
                if change.plural == plural and _selected(change.object, namespace, request):
                    await self._send_event(writer, change)
            marks = [mark for mark in self._bookmarks if mark > at]
            if marks and request.query.get("allowWatchBookmarks") == "true":
                at = marks[-1]
                kept = {"kind": "Any", "apiVersion": "v1", "metadata": {"resourceVersion": str(at)}}
                self._write_event(writer, "BOOKMARK", kept)
            await writer.drain()
            async with self._changed:
                await self._changed.wait()

    async def _send_event(self, writer: asyncio.StreamWriter, change: _Change) -> None:
        line = json.dumps({"type": change.kind, "object": change.object}, ensure_ascii=False).encode() + b"\n"
        if self._has("cut"):
            raise ConnectionResetError
        if self._has("cut_in_line"):
            self._write_chunk(writer, line[: len(line) // 2])
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            raise ConnectionResetError
        if self._has("endless_line"):
            while True:
                self._write_chunk(writer, b"x" * 2**20)
                await writer.drain()
        if self._has("unknown_event"):
            line = json.dumps({"type": "RENAMED", "object": change.object}).encode() + b"\n"
        for piece in (line[:7], line[7:]):  # a line may come in pieces
            self._write_chunk(writer, piece)

    def _write_event(self, writer: asyncio.StreamWriter, kind: str, content: Object) -> None:
        self._write_chunk(writer, json.dumps({"type": kind, "object": content}).encode() + b"\n")

    def _write_chunk(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(content), content))

    async def _refuse(self, writer: asyncio.StreamWriter, code: int, message: str, reason: str = "") -> None:
        status = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
        await self._send(writer, code, json.dumps(status).encode())

    async def _send(self, writer: asyncio.StreamWriter, code: int, body: bytes, kind: str = "application/json") -> None:
        self.answered[code] += 1
        head = f"HTTP/1.1 {code} Any\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()


def _selected(item: Object, namespace: str, request: Request) -> bool:
    if item["metadata"]["namespace"] != namespace:
        return False
    selector = _SELECTOR.fullmatch(request.query.get("labelSelector", ""))
    if selector is None:
        return True
    value = item["metadata"].get("labels", {}).get(selector["key"])
    return value in selector["values"].split(",")
