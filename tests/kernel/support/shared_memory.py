"""What reports of swap and of shared memory say of one object."""

from memlens import Holder, Inventory, PageClass, SharedObject, SwapLedger
from memlens.swap.records import SwappedObject

# The classes that pages of shared memory may have.
_CLASSES = (
    *(PageClass.PRESENT, PageClass.CACHED, PageClass.PREALLOCATED, PageClass.NONE),
    *(PageClass.SWAPPED, PageClass.SWAP_CACHED, PageClass.UNKNOWN),
)


def holders_of(
    report: Inventory | SwapLedger, item: SharedObject | SwappedObject
) -> list[Holder]:
    return [row for row in report.holders if row.object == item.object]


def runs_of(report: Inventory, item: SharedObject) -> list[tuple[int, int, str]]:
    runs = (run for run in report.runs if run.object == item.object)
    return [(run.first, run.pages, run.page_class) for run in runs]


def counts_of(item: SharedObject) -> dict[PageClass, int]:
    return {kind: getattr(item, f"{kind.label}_pages") for kind in _CLASSES}


def marks_of(item: SharedObject | SwappedObject) -> set[str]:
    return set(filter(None, item.marks.split(", ")))


def slots_of(ledger: SwapLedger, item: SwappedObject) -> int:
    """Return how many slots are named as those of an object."""
    return sum(owner.pages for owner in ledger.slot_owners if owner.object == item.object)
