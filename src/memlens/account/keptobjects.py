"""Which memory goes with the exit of a process, beside what it maps alone."""

from collections.abc import Collection
from typing import NamedTuple

from memlens.account.facts import Missed, Want
from memlens.account.foundobject import FoundObject
from memlens.account.inventory import read_objects
from memlens.account.memories import Memories, find_memories
from memlens.account.sharedobject import holder_notes, kept_pages
from memlens.account.sweep import Sweep


class Kept(NamedTuple):
    """
    What is freed or stays when one of several processes ends.

    :param pages: by PID, pages in RAM of shared-memory objects that nobody else keeps.
    :param memories: which of them run in one memory with others.
    :param notes: what is left out, and why, one line each.
    """

    pages: dict[int, int]
    memories: Memories
    notes: tuple[str, ...]


def find_kept(pids: Collection[int], proc: str, missed: list[Missed]) -> Kept:
    """
    Return what goes with the exit of processes, and which share all that they have.

    :param pids: of these processes; others may hold the same objects all the same.
    :param missed: takes what could not be looked at: holders may be among these.
    """

    def is_held_by_one(item: FoundObject) -> bool:
        holders = {facts.pid for facts, _ in item.uses}
        return len(holders) == 1 and holders <= set(pids)

    sweep = Sweep(proc, Want(objects=True))
    sweep.run()
    memories = find_memories(sweep.processes, lambda facts: facts.pid in pids, proc)
    objects = read_objects(sweep, only=is_held_by_one, tells_present=False).objects
    missed.extend(sweep.missed)
    notes = (*memories.notes(), *holder_notes(objects))
    return Kept(kept_pages(objects), memories, notes)
