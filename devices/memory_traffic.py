"""How many bytes each operator fetches from memory, and how many it finds in the cache.

The cache is taken to hold whole tensors and to drop the one that was not used for longest. The
graph runs over and over, as it does when it is timed: what counts is a run that finds the cache as
the run before it left it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from devices.operator_costs import Access, GraphCost, OperatorCost


def memory_bytes(graph: GraphCost, cache_bytes: int, *, copy_per_use: bool) -> tuple[int, ...]:
    """Count the bytes that pass between memory and cache, for each operator of a graph.

    Args:
        cache_bytes: of the last cache before memory; 0 for none.
        copy_per_use: whether each use of a stored tensor reads a copy of its own.
    """
    last_use = _last_uses(graph)
    cache = _Cache(cache_bytes)
    found: list[int] = []
    for _ in range(2):  # the first run only fills the cache
        found = []
        for place, operator in enumerate(graph.operators):
            moved = sum(cache.read(_named(a, place, copy_per_use), a) for a in operator.reads)
            moved += sum(cache.write(access) for access in operator.writes)
            cache.drop(_dead(operator, place, last_use))
            found.append(moved)
    return tuple(found)


class _Cache:
    """Whole tensors, the one that was used last at the end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._held: OrderedDict[str, tuple[int, bool]] = OrderedDict()  # bytes; not yet in memory

    def read(self, name: str, access: Access) -> int:
        """Give the bytes that have to be moved so that a tensor can be read."""
        if name in self._held:
            self._held.move_to_end(name)
            return 0
        moved = access.bytes
        return moved + (self._hold(name, access.bytes, False) if access.whole else 0)

    def write(self, access: Access) -> int:
        """Give the bytes that have to be moved so that a tensor can be written."""
        self.drop([access.tensor])
        moved = self._hold(access.tensor, access.bytes, True)
        return moved if access.tensor in self._held else moved + access.bytes

    def drop(self, names: Collection[str]) -> None:
        """Forget tensors that nobody reads any more: they never reach memory."""
        for name in names:
            self._used -= self._held.pop(name, (0, False))[0]

    def _hold(self, name: str, size: int, changed: bool) -> int:
        """Make room for a tensor; one that is larger than the cache pushes everything out."""
        moved = 0
        while self._held and self._used + size > self._size:
            _, (dropped, was_changed) = self._held.popitem(last=False)
            self._used -= dropped
            moved += dropped if was_changed else 0
        if size <= self._size:
            self._held[name] = (size, changed)
            self._used += size
        return moved


def _named(access: Access, place: int, copy_per_use: bool) -> str:
    return f"{access.tensor}@{place}" if access.stored and copy_per_use else access.tensor


def _last_uses(graph: GraphCost) -> dict[str, int]:
    """Where each activation is read, or written, for the last time; not those that are results."""
    last: dict[str, int] = {}
    for place, operator in enumerate(graph.operators):
        for access in (*operator.reads, *operator.writes):
            if not access.stored and access.tensor not in graph.outputs:
                last[access.tensor] = place
    return last


def _dead(operator: OperatorCost, place: int, last_use: dict[str, int]) -> Sequence[str]:
    names = [access.tensor for access in (*operator.reads, *operator.writes)]
    return [name for name in names if last_use.get(name) == place]
