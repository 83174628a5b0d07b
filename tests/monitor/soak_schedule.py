"""What happens in the soak of the monitor, when and to whom; it follows from the seed alone."""

import random
from typing import NamedTuple


class Event(NamedTuple):
    """What is to happen: when (seconds), to which server (None: to the folder or the disk they share), and what."""

    at: float
    server: int | None
    kind: str
    value: float = 0.0


# kind -> mean seconds between two, for each server; the lengths of what lasts are drawn up to `LENGTHS`
SERVERS = {
    "look": 0.25,
    "predict": 0.5,
    "stop": 6.0,
    "close": 14.0,
    "clock": 4.0,
    "raise": 9.0,
    "stall": 9.0,
    "limit": 9.0,
}
LENGTHS = {"stop": 2.0, "raise": 3.0, "stall": 3.0, "limit": 2.0, "full": 2.0, "in the way": 0.5}
# the same for all servers together
FOLDERS = {
    "remove": 16.0,
    "remove records": 16.0,
    "rename": 16.0,
    "rename records": 16.0,
    "unlink a segment": 12.0,
    "rename a segment": 12.0,
    "replace a segment": 12.0,
    "truncate a segment": 12.0,
    "cut a segment": 12.0,
    "copytruncate": 12.0,
    "in the way": 30.0,
    "full": 20.0,
}


def schedule(seed: int, seconds: float, servers: int) -> list[Event]:
    """Return everything that happens, in order; each kind at least once."""
    events = []
    for number in [*range(servers), None]:
        for kind, mean in (FOLDERS if number is None else SERVERS).items():
            choose = random.Random(f"{seed} {number} {kind}")
            at = choose.uniform(0.1, 0.8) * min(seconds, mean)
            while at < seconds:
                value = choose.uniform(0.05, LENGTHS[kind]) if kind in LENGTHS else choose.random()
                events.append(Event(round(at, 3), number, kind, round(value, 3)))
                at += choose.expovariate(1 / mean)
    return sorted(events, key=lambda event: (event.at, str(event.server), event.kind))
