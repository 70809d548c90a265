"""Which shared memory goes with the exit of a process."""

from collections.abc import Collection

from memlens.account.facts import Missed, Want
from memlens.account.foundobject import FoundObject
from memlens.account.inventory import read_objects
from memlens.account.sharedobject import kept_pages
from memlens.account.sweep import Sweep


def find_kept_pages(pids: Collection[int], proc: str, missed: list[Missed]) -> dict[int, int]:
    """
    Return, by PID, the pages in RAM of shared-memory objects that nobody else keeps.

    :param pids: of these processes; others may hold the same objects all the same.
    :param missed: takes what could not be looked at: holders may be among these.
    """

    def is_held_by_one(item: FoundObject) -> bool:
        holders = {facts.pid for facts, _ in item.uses}
        return len(holders) == 1 and holders <= set(pids)

    sweep = Sweep(proc, Want(objects=True))
    sweep.run()
    kept = kept_pages(read_objects(sweep, only=is_held_by_one, tells_present=False).objects)
    missed.extend(sweep.missed)
    return kept
