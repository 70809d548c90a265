"""Which pages of which mappings are looked at together, and what backs them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import KERNEL_HALF, Mapping, MapsTable, table_of
from memlens.objects.opener import (
    REPLACED,
    SHMEM,
    SPECIAL,
    VANISHED,
    ObjectFacts,
    Opener,
    device_text,
    internal_device,
)

# A batch goes through all reads before the next begins: mappings up to so many pages together.
_BATCH_PAGES = 1 << 18
_BATCH_MAPPINGS = 1 << 14

# Why an object is not opened by one mapping that may be opened by another.
GONE = (VANISHED, REPLACED)


@dataclass(frozen=True, slots=True)
class Spans:
    """
    Pages ``[first, stop)`` of each of some mappings; a single one is a sequence of one.

    :param mappings: the mappings, in the order of the lines of maps.
    :param first: first page, from the start of the mapping, ``(n,)`` int64.
    :param stop: page after the last, ``(n,)`` int64.
    """

    mappings: MapsTable
    first: NDArray[np.int64]
    stop: NDArray[np.int64]

    @classmethod
    def of(cls, mapping: Mapping, first: int, stop: int) -> "Spans":
        """Return pages of a single mapping."""
        return cls(table_of([mapping]), np.array([first]), np.array([stop]))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def is_of_kernel(self) -> bool:
        """Return whether it is a single one in the kernel's half, of no page table."""
        return bool(self.mappings.start[0] >= np.uint64(KERNEL_HALF))

    @property
    def pages(self) -> NDArray[np.int64]:
        """Return how many pages each is."""
        return self.stop - self.first

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "Spans":
        """Return some of them."""
        return Spans(self.mappings.take(rows), self.first[rows], self.stop[rows])


def batches(spans: Spans) -> Iterator[Spans]:
    """
    Yield spans that are to be read together: in the order of their addresses, and apart.

    The kernel lets go of the mappings every 4 KiB of maps, so that a line may overlap those
    before it when mappings were joined meanwhile.
    """
    table = spans.mappings
    apart = np.append(np.flatnonzero(table.start[1:] < table.stop[:-1]) + 1, len(spans))
    held = np.cumsum(spans.pages)
    first = 0
    while first < len(spans):
        before = int(held[first - 1]) if first else 0
        full = int(np.searchsorted(held, before + _BATCH_PAGES, side="right"))
        stop = min(full, first + _BATCH_MAPPINGS, int(apart[np.searchsorted(apart, first + 1)]))
        stop = max(stop, first + 1)
        yield spans.take(slice(first, stop))
        first = stop


def find_facts(opener: Opener, mappings: MapsTable) -> list[ObjectFacts]:
    """
    Return what backs each place of a table; ``SPECIAL`` for one where nothing is mapped.

    It is asked of the first mapping of it that is still there.
    """
    found: list[ObjectFacts] = [SPECIAL] * len(mappings.places)
    if not len(mappings):
        return found
    order = np.argsort(mappings.place, kind="stable")
    edges = np.flatnonzero(np.diff(mappings.place[order])) + 1
    rows, stops = order.tolist(), [*edges.tolist(), len(order)]
    # Nothing else is on the file system of memfds and anonymous shared memory.
    internal = device_text(internal_device())
    first = 0
    for stop in stops:
        number = int(mappings.place[rows[first]])
        if mappings.places[number].device == internal:
            found[number] = SHMEM
            opener.know(mappings.places[number], SHMEM)
            first = stop
            continue
        for row in rows[first:stop]:
            found[number] = opener.facts(mappings[row])
            if found[number].refusal not in GONE:
                break
        first = stop
    return found


def groups(spans: Spans, facts: Sequence[ObjectFacts], *, is_each_alone: bool) -> list[Spans]:
    """
    Return those of a batch that can be read together, and each of the others by itself.

    :param facts: what backs each place.
    :param is_each_alone: whether words or slots are wanted, which are of one mapping each.
    """
    table = spans.mappings
    is_plain = np.array([one.kind not in ("overlay", "hugetlb") for one in facts], bool)
    is_plain = is_plain[table.place] & (table.start < np.uint64(KERNEL_HALF))
    if is_each_alone:
        is_plain[:] = False
    alone = [spans.take(slice(row, row + 1)) for row in np.flatnonzero(~is_plain).tolist()]
    return [spans.take(is_plain), *alone] if is_plain.any() else alone
