"""A small working stand-in for the `nfqlb` program, for machines that do not have it.

Run as a program it does `init`, `activate`, `deactivate`, `show` and `delete` with the arguments, messages, exit
statuses and memory layout of the real one, except that the memories are in a directory of the test's choice. Imported,
`FakeNfqlb` installs it in a directory and arms its faults.
"""

import mmap
import os
import random
import shlex
import signal
import struct
import sys
from enum import StrEnum
from pathlib import Path

HOME = "FAKE_NFQLB_HOME"
SHM_DIR = "FAKE_NFQLB_SHM_DIR"
HANG_LIMIT_S = 60


class Fault(StrEnum):
    """What can go wrong, once, with the next call of a command."""

    REFUSE = "refuse"
    """Exit with status 1 and a complaint, having changed nothing."""
    HANG = "hang"
    """Never end (until killed)."""
    DIE_HALFWAY = "die-halfway"
    """Be killed in the middle of a rebuild: the lookup array is left empty."""
    GARBLE = "garble"
    """Print something that nobody expects, and succeed."""


class FakeNfqlb:
    """The stand-in installed in a directory, with its memories in another one.

    Let `shm_dir` be on a tmpfs, as /dev/shm is: elsewhere stores through a mapping change the modification time.
    """

    def __init__(self, home: Path, shm_dir: Path) -> None:
        self.binary = home / "nfqlb"
        self.shm_dir = shm_dir
        self._home = home
        program = shlex.quote(str(Path(__file__).resolve()))
        python = shlex.quote(sys.executable)
        environment = f"{HOME}={shlex.quote(str(home))} {SHM_DIR}={shlex.quote(str(shm_dir))}"
        self.binary.write_text(f'#!/bin/sh\n{environment} exec {python} -I -S {program} "$@"\n')
        self.binary.chmod(0o755)

    def arm(self, command: str, fault: Fault) -> None:
        """Let the next call of a command fail in this way."""
        (self._home / f"fault.{command}").write_text(fault)

    def calls(self) -> list[str]:
        """Return the command lines so far, oldest first, without the program's name."""
        log = self._home / "calls"
        return log.read_text().splitlines() if log.exists() else []


class Memory:
    """A memory file, with its arrays in plain lists until `store` writes them back."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.own, self.slots, self.targets, self.length = struct.unpack_from("=iIII", self._map)
        self.rows_at = 16 + 4 * self.slots
        self.active_at = self.rows_at + 4 * self.slots * self.targets
        self.lookup = list(struct.unpack_from(f"={self.slots}i", self._map, 16))
        self.active = list(struct.unpack_from(f"={self.targets}i", self._map, self.active_at))

    def row(self, index: int) -> list[int]:
        return list(struct.unpack_from(f"={self.slots}I", self._map, self.rows_at + 4 * self.slots * index))

    def store(self) -> None:
        """Write through the mapping, as the real one does: the modification time of the file stays."""
        struct.pack_into(f"={self.slots}i", self._map, 16, *self.lookup)
        struct.pack_into(f"={self.targets}i", self._map, self.active_at, *self.active)

    def populate(self) -> None:
        """Empty the table, then let the active targets take their next free slot by turns."""
        self.lookup = [-1] * self.slots
        walks = [(index, iter(self.row(index))) for index, mark in enumerate(self.active) if mark >= 0]
        left = self.slots if walks else 0
        while left:
            for index, walk in walks[:left]:
                slot = next(candidate for candidate in walk if self.lookup[candidate] < 0)
                self.lookup[slot] = index
                left -= 1


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
    number = max(number, 3)
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number -= 1
    return number


def die(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.exit(1)


def open_memory(shm_dir: Path, name: str) -> Memory:
    try:
        return Memory(shm_dir / name)
    except OSError:
        die(f"FAILED mapSharedData: {name}")
        raise


def change(shm_dir: Path, options: dict[str, str], mark: int, fault: str) -> None:
    memory = open_memory(shm_dir, options.get("shm", "nfqlb"))
    index = int(options["index"])
    if index >= memory.targets:
        die("Lookup index too large")
    if memory.active[index] == mark:
        return
    memory.active[index] = mark
    memory.populate()
    if fault == Fault.DIE_HALFWAY:
        memory.lookup = [-1] * memory.slots
        memory.store()
        os.kill(os.getpid(), signal.SIGKILL)
    memory.store()


def init(shm_dir: Path, options: dict[str, str]) -> None:
    asked, targets = int(options.get("M", "997")), int(options.get("N", "32"))
    slots = prime_below(asked)
    if slots != asked:
        print(f"M adjusted; {asked} -> {slots}")
    if targets > slots:
        die("N can't be larger than M")
    make_memory(shm_dir / options.get("shm", "nfqlb"), slots, targets, own=int(options.get("ownfw", "0")))


def show(shm_dir: Path, name: str) -> None:
    memory = open_memory(shm_dir, name)
    print(f"Shm: {name}\n  Fw: own={memory.own}\n  Maglev: M={memory.slots}, N={memory.targets}")
    print("   Lookup:" + "".join(f" {index}" for index in memory.lookup[:25]) + "...")
    print("   Active:" + "".join(f" {mark}({index})" for index, mark in enumerate(memory.active) if mark >= 0))


def next_fault(home: Path, command: str) -> str:
    """Take the fault that is armed for a command; it strikes once."""
    path = home / f"fault.{command}"
    if not path.exists():
        return ""
    fault = path.read_text()
    path.unlink()
    return fault


def main(arguments: list[str]) -> None:
    home, shm_dir = Path(os.environ[HOME]), Path(os.environ[SHM_DIR])
    with (home / "calls").open("a") as log:
        log.write(" ".join(arguments) + "\n")
    command, rest = arguments[0], arguments[1:]
    options = dict(word.removeprefix("--").split("=", 1) for word in rest if word.startswith("--"))
    words = [word for word in rest if not word.startswith("--")]
    fault = next_fault(home, command)
    if fault == Fault.REFUSE:
        die("refused on purpose")
    if fault == Fault.GARBLE:
        print("lp0 on fire")
        return
    if fault == Fault.HANG:
        signal.alarm(HANG_LIMIT_S)
        signal.pause()
    if command == "init":
        init(shm_dir, options)
    elif command == "activate":
        change(shm_dir, options, int(words[0]), fault)
    elif command == "deactivate":
        change(shm_dir, options, -1, fault)
    elif command == "show":
        show(shm_dir, options.get("shm", "nfqlb"))
    elif command == "delete":
        (shm_dir / options["shm"]).unlink(missing_ok=True)
    else:
        die(f"Unknown command [{command}]")


if __name__ == "__main__":
    main(sys.argv[1:])
