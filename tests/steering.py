"""Flow affinity of a stream, for tests of those who carry it out."""

from lbguard.core.model import FamilySteering, StreamSteering

MARKS = (5001, 5002, 5003, 5004)


def steering(
    name: str = "stream-a",
    marks: tuple[int, ...] = MARKS,
    *,
    served: tuple[int, ...] | None = None,
    healthy: tuple[int, ...] | None = None,
    avoid: tuple[int, ...] = (),
    learning: bool = True,
    observing: bool = False,
    draining: tuple[int, ...] = (),
) -> StreamSteering:
    """The affinity of a stream, the same in both families: every target served and healthy unless said otherwise."""
    served = marks if served is None else served
    healthy = tuple(m for m in served if m not in avoid) if healthy is None else healthy
    family = FamilySteering(healthy=healthy, avoid=avoid, served=served)
    return StreamSteering(
        stream=name,
        marks=marks,
        ipv4=family,
        ipv6=family,
        learning=learning,
        observing=observing,
        draining=draining,
    )
