"""Schedule of announcements: the paced sends of each address, as a pure structure that takes the time as an argument.

Each (link, address) waits for one of its sends, called steps. The offsets are the same for all, so the addresses that
wait for one step are due in the order in which they entered it: a plain dict per step is a sorted queue. When an
address is announced again, it is removed from its step by key, so no stale entry remains and the number of waiting
addresses is the number of entries, which is bounded.

Steps are served in this order: first sends before repeats, because the first send ends a blackhole; then the latest
step first. Late steps hold the older announcements, so every queue stays sorted even when the caller is late. An
address whose next offsets have already passed is sent once, not in a burst.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lbguard.core.addr import Ip
from lbguard.core.model import LinkKey


@dataclass(slots=True, kw_only=True)
class Announcement:
    """One request to announce the addresses of a link.

    `asked_at` and `sent_at` are seconds of the announcer's clock; `sent_at` is when the kernel had accepted its first
    frame, None until then.
    """

    link: LinkKey
    mac: bytes
    asked_at: float
    sent_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Entry:
    """One address of an announcement: its frames once built, when it was first sent, and the step it waits for."""

    announcement: Announcement
    ip: Ip
    frames: tuple[bytes, ...] = ()
    started_at: float = 0.0
    step: int = 0


_Key = tuple[LinkKey, Ip]


class Plan:
    """The addresses that wait to be sent.

    Args:
        repeats_s: offsets of the sends of an address from its first, in seconds; starts with 0 and increases.
        max_waiting: how many addresses may wait.

    Raises:
        ValueError: the offsets are not of that form, or the bound is below 1.
    """

    def __init__(self, *, repeats_s: Sequence[float], max_waiting: int) -> None:
        self._entries: dict[_Key, Entry] = {}
        self.configure(repeats_s=repeats_s, max_waiting=max_waiting)

    def __len__(self) -> int:
        return len(self._entries)

    def configure(self, *, repeats_s: Sequence[float], max_waiting: int) -> None:
        """Use other offsets and another bound from now on, also for the addresses that wait.

        An address that was sent as often as the new offsets say is done.

        Raises:
            ValueError: a value is out of its range.
        """
        offsets = tuple(repeats_s)
        if not offsets or offsets[0] != 0 or any(b <= a for a, b in itertools.pairwise(offsets)):
            raise ValueError(f"repeats must start with 0 and increase, such as 0, 0.1, 1.1: {offsets}")
        if max_waiting < 1:
            raise ValueError(f"at least 1 address must be allowed to wait: {max_waiting}")
        self._offsets_s = offsets
        self._max_waiting = max_waiting
        self._entries = {key: entry for key, entry in self._entries.items() if entry.step < len(offsets)}
        self._steps: tuple[dict[_Key, Entry], ...] = tuple({} for _ in offsets)
        for key, entry in sorted(self._entries.items(), key=lambda item: item[1].started_at):
            self._steps[entry.step][key] = entry
        self._serving_order = (self._steps[0], *reversed(self._steps[1:]))

    def has_room(self, link: LinkKey, ip: Ip) -> bool:
        """Return whether an address can be added now. An address that already waits always can: it is replaced."""
        return (link, ip) in self._entries or len(self._entries) < self._max_waiting

    def add(self, entry: Entry) -> bool:
        """Add an address, due at once. The caller has made sure that there is room.

        Returns:
            Whether it replaced a waiting entry of the same link and address. The new entry starts from the first send.
        """
        key = (entry.announcement.link, entry.ip)
        assert self.has_room(*key), "the caller checks for room"
        merged = self._remove(key)
        self._entries[key] = entry
        self._steps[0][key] = entry
        return merged

    def take_due(self, now: float) -> Entry | None:
        """Remove and return the next due address, or None. `sent` puts it back; without it the address is cancelled."""
        for step in self._serving_order:
            for entry in step.values():
                if self._due(entry) <= now:
                    self._remove((entry.announcement.link, entry.ip))
                    return entry
                break
        return None

    def sent(self, entry: Entry, now: float) -> None:
        """Record that an address was sent (or tried) at this time: it now waits for its next step, if any."""
        if entry.step == 0:
            entry.started_at = now
        entry.step += 1
        while entry.step < len(self._offsets_s):
            if self._due(entry) > now:
                key = (entry.announcement.link, entry.ip)
                self._entries[key] = entry
                self._steps[entry.step][key] = entry
                return
            entry.step += 1

    def next_due(self) -> float | None:
        """Return when the next address is due, in seconds of the caller's clock; None when none waits."""
        first = (next(iter(step.values()), None) for step in self._steps)
        return min((self._due(entry) for entry in first if entry is not None), default=None)

    def clear(self) -> int:
        """Forget all addresses; return how many waited."""
        count = len(self._entries)
        self._entries.clear()
        for step in self._steps:
            step.clear()
        return count

    def _due(self, entry: Entry) -> float:
        # The first send is always due; its entry keeps the time of the request, which is never in the future.
        if entry.step == 0:
            return entry.announcement.asked_at
        return entry.started_at + self._offsets_s[entry.step]

    def _remove(self, key: _Key) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        del self._steps[entry.step][key]
        return True
