"""A stand-in for the `nfqlb` program, for machines that do not have it.

    python -m lbguard.lab.nfqlb_stand_in COMMAND [--OPTION=VALUE...] [FWMARK]

It takes what Meridio and the lab call, with the arguments, messages, exit statuses and memory layout of the real one
(see `lbguard.distributor.nfqlb.memory` for the layout). `init`, `activate`, `deactivate`, `show` and `delete` work on
the memory, and as with the real one a change empties the whole lookup array and refills it in place, while packets are
looked up in it. `flowlb`, `flow-set` and `flow-delete` are in `nfqlb_packets`.

This is a model of somebody else's program and not lbguard's own way to write a table: tests compare the two. So it
shares no code with it, and a command is there and gone as fast as Python can be.
"""

import mmap
import os
import random
import struct
import sys
from pathlib import Path

SHM_DIR = Path("/dev/shm")
HEADER_BYTES = 16
FIELD_BYTES = 4
DEFAULT_SHM = "nfqlb"
FAILED = 1
OPTIONS = {
    "init": ("ownfw", "shm", "M", "N"),
    "activate": ("shm", "index"),
    "deactivate": ("shm", "index"),
    "show": ("shm",),
    "delete": ("shm",),
    "flowlb": ("queue", "qlength", "hash_mode", "promiscuous_ping"),
    "flow-set": ("name", "target", "prio", "protocols", "dsts"),
    "flow-delete": ("name",),
}


class RefusedError(Exception):
    """The call fails with exit status 1; the message goes to standard error."""


class Memory:
    """A memory file, with its arrays in plain lists until `store` writes them back."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            OSError: it cannot be opened.
            ValueError: it is empty.
        """
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.own, self.slots, self.targets, self.length = struct.unpack_from("=iIII", self._map)
        self.fields = memoryview(self._map).cast("i")
        self.lookup_from = HEADER_BYTES // FIELD_BYTES
        self.rows_from = self.lookup_from + self.slots
        self.active_from = self.rows_from + self.slots * self.targets
        self.lookup = self.fields[self.lookup_from : self.rows_from].tolist()
        self.active = self.fields[self.active_from : self.active_from + self.targets].tolist()

    def row(self, index: int) -> list[int]:
        """Return the slots in the order in which a target asks for them."""
        start = self.rows_from + self.slots * index
        return self.fields[start : start + self.slots].tolist()

    def store(self) -> None:
        """Write through the mapping, as the real one does: the modification time of the file stays.

        Field by field: struct.pack_into would fill all with zeros first, and send packets to the first target.
        """
        for first, values in ((self.lookup_from, self.lookup), (self.active_from, self.active)):
            for field, value in enumerate(values, first):
                self.fields[field] = value

    def clear(self) -> None:
        """Empty the table."""
        self.lookup = [-1] * self.slots

    def populate(self) -> None:
        """Empty the table, then let the active targets take their next free slot by turns."""
        self.clear()
        walks = [(index, iter(self.row(index))) for index, mark in enumerate(self.active) if mark >= 0]
        left = self.slots if walks else 0
        while left:
            for index, walk in walks[:left]:
                slot = next(candidate for candidate in walk if self.lookup[candidate] < 0)
                self.lookup[slot] = index
                left -= 1

    def change(self, index: int, mark: int) -> None:
        """Give a target another mark (negative: none), as the real one does: packets meet an empty table meanwhile."""
        self.active[index] = mark
        self.clear()
        self.store()
        self.populate()
        self.store()

    def mark_of(self, number: int) -> int:
        """Return the fwmark of the target that a hash leads to, in the memory as it is now; negative if none."""
        index = self.fields[self.lookup_from + number % self.slots]
        return self.fields[self.active_from + index] if 0 <= index < self.targets else -1


def make_memory(path: Path, slots: int, targets: int, *, own: int = 0, seed: int = 1) -> None:
    """Do what `nfqlb init` does with a prime number of slots, rewriting the file in place if it exists."""
    chance = random.Random(seed)
    length = 12 + 4 * (3 + slots * targets) + 4 * (slots + targets)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(struct.pack("=iIII", own, slots, targets, length))
        file.write(struct.pack(f"={slots}i", *[-1] * slots))
        for _ in range(targets):
            offset, skip = chance.randrange(slots), chance.randrange(slots - 1) + 1
            file.write(struct.pack(f"={slots}I", *((offset + step * skip) % slots for step in range(slots))))
        file.write(struct.pack(f"={targets}i", *[-1] * targets))
        # The real length leaves room for three fields that are not used.
        file.write(bytes(4 + length - file.tell()))


def prime_below(number: int) -> int:
    """Return the greatest prime that is not above a number, at least 3."""
    number = max(number, 3)
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number -= 1
    return number


def open_memory(shm_dir: Path, name: str) -> Memory:
    """Open a memory by its name.

    Raises:
        RefusedError: there is none.
    """
    try:
        return Memory(shm_dir / name)
    except (OSError, ValueError):
        raise RefusedError(f"FAILED mapSharedData: {name}") from None


def _number(text: str) -> int:
    """Read a number as C's `atoi` does, as far as anybody minds: what is none is 0."""
    try:
        return int(text)
    except ValueError:
        return 0


def _init(shm_dir: Path, options: dict[str, str]) -> None:
    asked, targets = _number(options.get("M", "997")), _number(options.get("N", "32"))
    slots = prime_below(asked)
    if slots != asked:
        print(f"M adjusted; {asked} -> {slots}")
    if targets > slots:
        raise RefusedError("N can't be larger than M")
    make_memory(shm_dir / options.get("shm", DEFAULT_SHM), slots, targets, own=_number(options.get("ownfw", "0")))


def _change(shm_dir: Path, options: dict[str, str], mark: int) -> None:
    if "index" not in options:
        raise RefusedError("the stand-in for nfqlb takes a target by --index alone")
    memory = open_memory(shm_dir, options.get("shm", DEFAULT_SHM))
    index = _number(options["index"])
    if not 0 <= index < memory.targets:
        raise RefusedError("Lookup index too large")
    if memory.active[index] != mark:
        memory.change(index, mark)


def _show(shm_dir: Path, name: str) -> None:
    memory = open_memory(shm_dir, name)
    print(f"Shm: {name}\n  Fw: own={memory.own}\n  Maglev: M={memory.slots}, N={memory.targets}")
    print("   Lookup:" + "".join(f" {index}" for index in memory.lookup[:25]) + "...")
    print("   Active:" + "".join(f" {mark}({index})" for index, mark in enumerate(memory.active) if mark >= 0))


def _delete(shm_dir: Path, options: dict[str, str]) -> None:
    if "shm" not in options:
        raise RefusedError("Missing option [--shm]")
    (shm_dir / options["shm"]).unlink(missing_ok=True)


def _packets(command: str, options: dict[str, str], shm_dir: Path) -> int:
    from lbguard.lab import nfqlb_packets  # the other commands are faster without it

    if command == "flowlb":
        nfqlb_packets.serve(options, shm_dir)
    needed = {"flow-set": ("name", "target"), "flow-delete": ("name",)}[command]
    for name in needed:
        if name not in options:
            raise RefusedError(f"Missing option [--{name}]")
    try:
        answer = nfqlb_packets.ask(command, options)
    except OSError as error:
        raise RefusedError(f"Connect failed. {error.strerror}") from None
    print(answer)
    return 0 if answer == nfqlb_packets.OK else 255


def parse(arguments: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """Return command, options and other words of a call.

    Raises:
        RefusedError: the command or an option is not known.
    """
    command = arguments[0] if arguments else ""
    if command not in OPTIONS:
        raise RefusedError(f"Unknown command [{command}]")
    options, words = {}, []
    for word in arguments[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            words.append(word)
        elif name in OPTIONS[command]:
            options[name] = value
        else:
            raise RefusedError(f"{command}: unrecognized option '{word}'")
    return command, options, words


def run(arguments: list[str], shm_dir: Path = SHM_DIR) -> int:
    """Carry out a call of nfqlb and return its exit status."""
    try:
        command, options, words = parse(arguments)
        if command == "init":
            _init(shm_dir, options)
        elif command == "activate":
            _change(shm_dir, options, _number(words[0] if words else ""))
        elif command == "deactivate":
            _change(shm_dir, options, -1)
        elif command == "show":
            _show(shm_dir, options.get("shm", DEFAULT_SHM))
        elif command == "delete":
            _delete(shm_dir, options)
        else:
            return _packets(command, options, shm_dir)
    except RefusedError as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
