"""Conversion of a network service manager's connections into connections to monitor. Pure.

A client's connection passes the manager of its node more than once when the endpoint is on the same node, and the
manager reports each passage under an id of its own. The passages share the first segment of their path, the client's,
whose id every hop knows: it is the connection's id here. Of several passages the one nearest to the local end counts,
as for the mesh's own clients; its end is the end of the connection.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.core.addr import Ip
from lbguard.nsm import HEALING_STATES, Address, ConnectionScope, ManagerStream, addresses_of, connection_id
from lbguard.probe.connections import Connection, ConnectionList, ConnectionsLost, Emit, Pair, connections_between
from lbguard.probe.datapath import on_link_pairs, reported_pairs
from lbguard.rpc.channels import Dialer
from lbguard.settings.notation import Endpoint
from lbguard.settings.probe import SubjectKind

_SHOWN = 40
_PASSAGES_PER_CONNECTION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NsmScope(ConnectionScope):
    """Filter of connections and rules for reading them; see NsmSettings."""

    role: Literal["client", "endpoint"] = "client"
    subject: SubjectKind = "connection"
    heal_s: float = 15.0
    max_connections: int = 10_000


class NsmView:
    """Store of each connection's last message, without derived state.

    Args:
        scope: what counts.
        is_local: returns whether an address is ours now; a connection counts from the moment that one from which it is
            tested was. A manager tells of every pod of its node, and several may have the same VIP.
        link_of: returns the link that has an address, preferring the one of a name; empty: none.
        lengths_of: returns the lengths of the prefixes with which links have an address.
    """

    def __init__(
        self,
        scope: NsmScope,
        *,
        is_local: Callable[[Ip], bool],
        link_of: Callable[[Ip, str], str],
        lengths_of: Callable[[Ip], Iterable[int]] = lambda _: (),
    ) -> None:
        self._scope = scope
        self._is_local = is_local
        self._link_of = link_of
        self._lengths_of = lengths_of
        self._passages_refused = 0
        self._passages: dict[str, pb.Connection] = {}
        self._ours: set[str] = set()

    def apply(self, event: pb.ConnectionEvent) -> None:
        """Apply an event of the manager."""
        if event.type == pb.INITIAL_STATE_TRANSFER:
            before, self._passages = self._passages, {}
            self._passages_refused = 0
            for key, message in event.connections.items():
                self._update(message.id or key, message, before)
        elif event.type == pb.UPDATE:
            for key, message in event.connections.items():
                self._update(message.id or key, message, self._passages)
        elif event.type == pb.DELETE:
            for key, message in event.connections.items():
                self._delete(message.id or key)

    def connections(self) -> ConnectionList:
        """Return what to monitor now, by id: an event holds its connections in no order."""
        found: list[Connection] = []
        left_out: list[str] = []
        nearest = self._nearest()
        self._ours &= nearest.keys()
        for id, message in sorted(nearest.items(), key=lambda item: item[0]):
            if len(found) >= self._scope.max_connections:
                left_out.append(f"more than {self._scope.max_connections} connections")
                break
            local, pairs = self._datapath(message)
            ours = {pair.source for pair in pairs} or {address.ip for address in local}
            if id not in self._ours and not any(map(self._is_local, ours)):
                left_out.append(f"{id[:_SHOWN]}: its addresses are not ours")
                continue
            self._ours.add(id)
            found += self._made(id, message, pairs)
            if not pairs:
                left_out.append(f"{id[:_SHOWN]}: no address of ours has one of the other end in its subnet")
        if self._passages_refused:
            left_out.append(f"{self._passages_refused} passages more than can be remembered")
        return ConnectionList(connections=tuple(found), left_out=tuple(left_out))

    def _datapath(self, message: pb.Connection) -> tuple[Sequence[Address], list[Pair]]:
        """Return the addresses of our end, and the pairs of addresses between which a connection is tested."""
        context, from_source = message.context, self._scope.role == "client"
        source = list(addresses_of(context.ip_context.src_ip_addrs))
        destination = list(addresses_of(context.ip_context.dst_ip_addrs))
        local, remote = (source, destination) if from_source else (destination, source)
        listed = {address.ip for address in local}
        reported = reported_pairs(
            context.extra_context, from_source=from_source, current=lambda ip: ip in listed or self._is_local(ip)
        )
        families = {len(pair.source) for pair in reported}
        seen = on_link_pairs(local, remote, self._lengths_of)
        return local, reported + [pair for pair in seen if len(pair.source) not in families]

    def _made(self, id: str, message: pb.Connection, pairs: Sequence[Pair]) -> tuple[Connection, ...]:
        named = message.mechanism.parameters.get("name", "")
        links = (self._link_of(pair.source, named) for pair in pairs)
        return connections_between(
            id=id,
            kind=self._scope.subject,
            pairs=pairs,
            ifname=next((name for name in links if name), ""),
            healing_s=self._scope.heal_s if message.state in HEALING_STATES else 0.0,
        )

    def _update(self, id: str, message: pb.Connection, before: dict[str, pb.Connection]) -> None:
        if not self._scope.fits(message):
            self._passages.pop(id, None)
            return
        known = before.get(id)
        context = message.context.ip_context
        if known is not None and message.state in HEALING_STATES and not (context.src_ip_addrs or context.dst_ip_addrs):
            # While the mesh re-creates a connection it may have no addresses; it is still the same connection.
            kept = pb.Connection()
            kept.CopyFrom(message)
            kept.context.ip_context.CopyFrom(known.context.ip_context)
            if not kept.context.extra_context:
                kept.context.extra_context.update(known.context.extra_context)
            message = kept
        if id not in self._passages and len(self._passages) >= _PASSAGES_PER_CONNECTION * self._scope.max_connections:
            self._passages_refused += 1
            return
        self._passages[id] = message

    def _delete(self, id: str) -> None:
        """Remove a passage; the removal of the nearest one closes the connection, even if farther ones remain."""
        gone = self._passages.get(id)
        if gone is None:
            return
        connection = connection_id(id, gone)
        if self._nearest()[connection] is gone:
            members = [key for key, message in self._passages.items() if connection_id(key, message) == connection]
            for key in members:
                del self._passages[key]
            self._ours.discard(connection)
        else:
            del self._passages[id]

    def _nearest(self) -> dict[str, pb.Connection]:
        sign = 1 if self._scope.role == "client" else -1
        nearest: dict[str, pb.Connection] = {}
        for key, message in self._passages.items():
            id = connection_id(key, message)
            if id not in nearest or sign * message.path.index < sign * nearest[id].path.index:
                nearest[id] = message
        return nearest


class NsmSource:
    """Follows one manager.

    Args:
        endpoint: its address.
        dialer: makes channels to it.
        scope: which connections count; must be the view's.
        view: holds them.
        emit: takes the list at every event, and a loss once.
        backoff_max_s: the longest wait before dialling again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        dialer: Dialer,
        scope: NsmScope,
        view: NsmView,
        emit: Emit,
        *,
        backoff_max_s: float = 1.0,
    ) -> None:
        self._view = view
        self._emit = emit
        self._listed = False
        self._stream = ManagerStream(
            endpoint, dialer, scope, on_event=self._on_event, lose=self._lose, backoff_max_s=backoff_max_s
        )

    def reload(self) -> None:
        """Report the list again, as links and addresses are now; before the first list there is nothing to report."""
        if self._listed:
            self._emit(self._view.connections())

    async def run(self) -> None:
        """Follow the manager until cancelled."""
        await self._stream.run()

    def _on_event(self, event: pb.ConnectionEvent) -> None:
        self._view.apply(event)
        self._listed = True
        self._emit(self._view.connections())

    def _lose(self, reason: str) -> None:
        self._emit(ConnectionsLost(reason=reason))
