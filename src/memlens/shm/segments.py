"""
Which System V segment a mapping is of.

Its inode is the identifier, which every IPC namespace counts anew, and a process may have
entered another namespace since it attached.
"""

import os
from itertools import count

from memlens.errors import MemlensError
from memlens.kernel.syscalls import file_handle
from memlens.objects.sysv import open_segment
from memlens.scan.facts import ObjectKey, ObjectUse, ProcessFacts
from memlens.scan.machine import Machine
from memlens.shm.found import FoundObject

_Use = tuple[ProcessFacts, ObjectUse]


def settle_segments(found: dict[ObjectKey, FoundObject], machine: Machine) -> None:
    """
    Move what processes map to the segment that it is, where the namespace leaves a doubt.

    :param found: every object by its key; a segment's ends in its IPC namespace.
    :param machine: whose processes they are.
    """
    same: dict[int, list[FoundObject]] = {}
    for key, item in found.items():
        if item.kind == "sysv":
            same.setdefault(key[1], []).append(item)
    for items in same.values():
        if len(items) > 1 and any(_is_doubtful(item) for item in items):
            _settle(items, found, machine)


def _is_doubtful(item: FoundObject) -> bool:
    """Return whether it is attached where nobody was found to, or the other way round."""
    is_attached = item.segment is not None and item.segment.attached > 0
    return is_attached != bool(item.uses)


def _settle(
    items: list[FoundObject], found: dict[ObjectKey, FoundObject], machine: Machine
) -> None:
    by_handle = {
        handle: item for item in items if (handle := _segment_handle(item)) is not None
    }
    is_known = all(item.segment is None or item in by_handle.values() for item in items)
    others = count(-1, -1)
    for item in items:
        for pair in list(item.uses):
            handle = _use_handle(pair, machine)
            if handle is None or by_handle.get(handle) is item:
                continue
            if handle not in by_handle:
                if not is_known:
                    continue
                # Of a namespace that no process is in any more.
                key = (*item.key[:2], next(others))
                by_handle[handle] = found[key] = FoundObject(key, item.kind, item.name)
            _move(pair, item, by_handle[handle])
    for item in items:
        if not item.uses and item.segment is None:
            del found[item.key]


def _move(pair: _Use, item: FoundObject, target: FoundObject) -> None:
    item.uses.remove(pair)
    facts, use = pair
    target.uses.append((facts, use._replace(key=target.key)))


def _segment_handle(item: FoundObject) -> bytes | None:
    if item.segment is None:
        return None
    try:
        fd = open_segment(item.segment.shmid, item.namespace)
    except (OSError, MemlensError):
        return None
    try:
        return file_handle(f"/proc/self/fd/{fd}")
    except OSError:
        return None
    finally:
        os.close(fd)


def _use_handle(pair: _Use, machine: Machine) -> bytes | None:
    facts, use = pair
    path = f"{machine.root}/{facts.pid}/map_files/{use.mapping.name}" if use.mapping else ""
    try:
        return file_handle(path or f"{machine.root}/{use.tid or facts.pid}/fd/{use.fd}")
    except OSError:
        return None
