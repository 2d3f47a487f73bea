"""A model of the distributor: one small table per stream, anchored slots, and the ways in which it can fail."""

from dataclasses import dataclass, field

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.maglev import NO_TARGET, ImplicitPermutations, TableCalculator, TableKind

SLOTS = 31


@dataclass(slots=True)
class SimTable:
    """What stands in one stream's table; `slots` hold target identifiers, 0 for none."""

    spec: StreamSpec
    calculator: TableCalculator
    registered: frozenset[int] = frozenset()
    active: frozenset[int] = frozenset()
    slots: list[int] = field(default_factory=lambda: [0] * SLOTS)


class SimDistributor:
    """Tables by stream. `fail_next` holds what is refused, once each: (`attach` or `commit`, stream)."""

    def __init__(self) -> None:
        self.tables: dict[str, SimTable] = {}
        self.fail_next: set[tuple[str, str]] = set()
        self.vips: dict[str, tuple[object, ...]] = {}

    def attach(self, spec: StreamSpec) -> frozenset[int] | None:
        """Make a table ready and return what is active in it; None when that fails."""
        if ("attach", spec.name) in self.fail_next:
            self.fail_next.discard(("attach", spec.name))
            return None
        table = self.tables.get(spec.name)
        if table is None:
            calculator = TableCalculator(ImplicitPermutations(spec.name, SLOTS), TableKind.ANCHORED)
            table = self.tables[spec.name] = SimTable(spec, calculator)
        self.vips[spec.name] = spec.vips
        return table.active

    def commit(self, wanted: StreamTable) -> bool:
        name = wanted.stream.name
        table = self.tables.get(name)
        if table is None or ("commit", name) in self.fail_next:
            self.fail_next.discard(("commit", name))
            return False
        slots = table.calculator.table({i - 1 for i in wanted.registered}, {i - 1 for i in wanted.active})
        table.slots = [index + 1 if index != NO_TARGET else 0 for index in slots]
        table.registered, table.active = wanted.registered, wanted.active
        return True

    def lose(self, name: str) -> None:
        """The table is re-created empty by somebody else."""
        table = self.tables[name]
        table.registered = table.active = frozenset()
        table.slots = [0] * SLOTS

    def forget(self, name: str) -> None:
        self.tables.pop(name, None)
        self.vips.pop(name, None)

    def marks_in_use(self) -> set[int]:
        """Return the fwmarks that a packet can get."""
        return {table.spec.mark(i) for table in self.tables.values() for i in table.slots if i}

    def state(self) -> dict[str, tuple[frozenset[int], frozenset[int], tuple[int, ...]]]:
        return {name: (t.registered, t.active, tuple(t.slots)) for name, t in self.tables.items()}
