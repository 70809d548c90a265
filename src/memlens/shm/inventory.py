"""Every shared-memory object of the machine, once, with its holders."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import parse_meminfo
from memlens.objects.references import (
    has_message_counts,
    list_deleted_backing_files,
    read_backing_inode,
    read_message_descriptors,
)
from memlens.pages.classes import PageClass
from memlens.pages.runs import EMPTY
from memlens.record import Table
from memlens.report import make_sum
from memlens.residency.walk import Walking
from memlens.scan.facts import Want
from memlens.scan.jobs import ask_patiently
from memlens.scan.machine import Machine, Progress, Stop, Stopped
from memlens.scan.objectnames import no_such_object, resolve_name
from memlens.scan.sweep import Sweep
from memlens.shm.facts import ObjectFacts, mapper_notes, remainder_note
from memlens.shm.objects import Inspector
from memlens.shm.records import HeldRange, Holder, Inventory, ObjectRun, SharedObject
from memlens.shm.sources import Finder, FoundObject
from memlens.units import signed, user_name

# Progress is told after so many objects.
_STEP = 64

_HOLDER_NAME = 10
_RANGES_TOLD = 2
_LABELS = np.array([kind.label for kind in PageClass], object)

# Unit of st_blocks.
_BLOCK_BYTES = 512
_LAYER = (
    "tmpfs on {} is a layer of an overlay: who holds its files by way of the overlay is not "
    "known, and their pages that are mapped there alone are called cached"
)
_LINKS = (
    "tmpfs on {}: {} pages are targets of long symbolic links: whether they are in RAM or on "
    "swap cannot be asked, so that they are in the remainder"
)
_NO_CACHESTAT = (
    "without cachestat (Linux 6.5) pages of shared memory that keep a slot while they are in "
    "RAM look like others in RAM, and those beyond the end of objects are not found: they are "
    "in the remainder"
)
_IN_MESSAGES = "that may be in messages that nobody has read, too"
_NOT_TOLD = (
    "that may be in messages that nobody has read, too: "
    "this kernel (before Linux 5.6) does not tell"
)
_UNDER_LOOPS = "that loop devices which could not be asked may hold, too"
_MOUNTED = "that may be mounted where another mount covers them"


def list_shared_memory(
    name: str | None = None,
    *,
    runs: bool = False,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Inventory:
    """
    Return every shared-memory object of the machine, once.

    :param name: the only object wanted, as ``resolve_name`` reads it.
    :param runs: whether to tell the runs of pages of all objects; those of one always are.
    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends, with the rest in ``missed``.
    :param on_progress: called with what is done and what there is in all: processes,
        then objects.
    :param should_stop: asked often; True ends the scan, with the rest in ``missed``.
    :raises Unsupported: if ``proc`` is none, or what is named is no shared memory.
    :raises MemlensError: if no object has this name.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    origin = machine.origin()
    shmem = read_meminfo_pages("Shmem", machine)
    wanted = None if name is None else resolve_name(name, machine)
    want = Want(objects=True, present=name is not None, identity=False)
    sweep = Sweep(machine, want)
    sweep.run()
    only = None if wanted is None else wanted.matches
    scan = read_objects(sweep, only=only, tells_freed=wanted is not None)
    if wanted is not None and not scan.objects and sweep.is_complete:
        raise no_such_object(wanted)
    notes, sums = [*scan.notes], {}
    if sweep.may_miss_holders():
        notes += mapper_notes(scan.objects)
    notes += sweep.notes()
    if wanted is None:
        total = read_meminfo_pages("Shmem", machine)
        found = sum(item.resident_pages for item in scan.objects)
        sums["shmem"] = make_sum(total, found, total - shmem)
        notes += [remainder_note(sweep.missed)] if total > found else []
        notes += loop_notes(machine)
    return Inventory.at(
        origin,
        tables=make_tables(scan.objects, runs or wanted is not None),
        sums=sums,
        missed=sweep.missed,
        notes=notes,
        cost=machine.cost(),
        is_complete=sweep.is_complete,
    )


def make_tables(objects: Sequence[ObjectFacts], has_runs: bool) -> dict[str, Table[Any]]:
    """
    Return the tables of a report.

    :param has_runs: whether the runs of all pages are among them.
    """
    rows = [_object_row(*pair) for pair in enumerate(objects)]
    tables = {"objects": Table.of(SharedObject, rows), **holder_tables(objects)}
    return tables | {"runs": _run_table(objects)} if has_runs else tables


def _object_row(number: int, item: ObjectFacts) -> SharedObject:
    counts = item.counts().tolist()
    return SharedObject(
        object=number,
        kind=item.kind,
        size_bytes=item.size_bytes,
        resident_pages=item.resident_pages,
        present_pages=counts[PageClass.PRESENT],
        cached_pages=counts[PageClass.CACHED],
        swap_pages=item.swap_pages,
        swapped_pages=counts[PageClass.SWAPPED],
        swap_cached_pages=counts[PageClass.SWAP_CACHED],
        preallocated_pages=counts[PageClass.PREALLOCATED],
        none_pages=counts[PageClass.NONE],
        unknown_pages=counts[PageClass.UNKNOWN],
        beyond_end_resident_pages=item.beyond_end_resident_pages,
        beyond_end_swapped_pages=item.beyond_end_swap_pages,
        holders=name_holders(item),
        sole_keeper=item.sole_keeper,
        may_have_more_holders=item.may_have_more_holders,
        owner=None if item.uid is None else user_name(item.uid),
        uid=item.uid,
        age_s=item.age_s,
        device=item.device,
        inode=signed(item.inode),
        cgroup=item.cgroup,
        marks=", ".join(item.marks),
        reason="; ".join(item.reasons),
        name=item.name,
    )


def name_holders(item: ObjectFacts) -> str | None:
    """Return the holders in short, None if not known: who maps most of it is named."""
    if not item.holders:
        return "none" if "no_holder" in item.marks else None
    first = max(item.holders, key=lambda holder: holder.mapped_pages)
    more = f" +{len(item.holders) - 1}" if len(item.holders) > 1 else ""
    return f"{first.pid} {first.name[:_HOLDER_NAME]}{more}"


def holder_tables(objects: Iterable[ObjectFacts]) -> dict[str, Table[Any]]:
    """Return who holds objects, by their place in a list, and which part."""
    holders, ranges = [], []
    for number, item in enumerate(objects):
        for row in item.holders:
            parts = [f"{first}-{stop}" for first, stop in row.ranges[:_RANGES_TOLD]]
            if len(row.ranges) > _RANGES_TOLD:
                parts.append(f"+{len(row.ranges) - _RANGES_TOLD}")
            holders.append(
                Holder(
                    object=number,
                    pid=row.pid,
                    mapped_pages=row.mapped_pages,
                    present_pages=row.present_pages,
                    is_open=row.is_open,
                    parts=", ".join(parts),
                    name=row.name,
                )
            )
            ranges += [(number, row.pid, first, stop - first) for first, stop in row.ranges]
    columns = np.array(ranges, np.int64).reshape(-1, 4).T
    names = ("object", "pid", "first", "pages")
    return {
        "holders": Table.of(Holder, holders),
        "ranges": Table.of_columns(HeldRange, **dict(zip(names, columns, strict=True))),
    }


def _run_table(objects: Sequence[ObjectFacts]) -> Table[ObjectRun]:
    parts = [EMPTY, *[item.runs for item in objects]]
    return Table.of_columns(
        ObjectRun,
        object=np.repeat(np.arange(-1, len(objects)), [len(part) for part in parts]),
        first=np.concatenate([part.first for part in parts]),
        pages=np.concatenate([part.pages for part in parts]),
        page_class=_LABELS[np.concatenate([part.value for part in parts])],
    )


class ObjectScan(NamedTuple):
    """
    Objects, the largest first, and what to know about what is not among them.

    :param is_walked: whether the page-cache walk could be used, for slots.
    """

    objects: tuple[ObjectFacts, ...]
    notes: tuple[str, ...]
    is_walked: bool = False


def read_objects(
    sweep: Sweep,
    only_swapped: bool = False,
    only: Callable[[FoundObject], bool] | None = None,
    keep_slots: bool = False,
    tells_present: bool = True,
    tells_freed: bool = True,
) -> ObjectScan:
    """
    Look at every object that a sweep found, and at those that no process holds.

    :param only_swapped: whether objects without swapped pages are left out.
    :param only: whether an object is looked at; None for all.
    :param keep_slots: whether the slots of swapped pages are wanted.
    :param tells_present: whether it matters what of the pages in RAM is mapped; else all of
        them are ``cached``.
    :param tells_freed: whether it matters what keeps an object once its only holder has ended:
        to know costs a look at every socket of the machine.
    """
    try:
        finder = Finder(sweep)
        items = finder.find()
        if only is not None:
            items = [item for item in items if only(item)]
        walking = Walking(sweep.machine, keep_slots)
        reader = Inspector(sweep, finder, walking, only_swapped, tells_present)
        keepers = Keepers(finder) if tells_freed else None
        found = _read_items(reader, items, keepers)
        notes = _layer_notes(finder, items)
        if only is None and sweep.is_complete:
            notes += _hidden_notes(finder, items)
    finally:
        sweep.around.close()
    sweep.missed += [*finder.missed, *reader.list_missed()]
    if not sweep.machine.may("cachestat") and not walking.is_usable():
        notes.append(_NO_CACHESTAT)
    notes += dict.fromkeys(walking.notes)
    return ObjectScan(tuple(found), tuple(notes), walking.is_usable())


def _read_items(
    reader: Inspector, items: list[FoundObject], keepers: "Keepers | None"
) -> list[ObjectFacts]:
    """Look at objects until the scan is to end; the largest come first."""
    sweep, found = reader.sweep, []
    for number, item in enumerate(items):
        if number % _STEP == 0:
            sweep.progress(number, len(items))
        try:
            sweep.machine.check_stop()
            shared = reader.read(item)
            if keepers is not None and shared is not None:
                shared = keepers.settle(item, shared)
        except Stopped:
            sweep.miss_rest(f"{len(items) - number} shared-memory objects")
            break
        if shared is not None:
            found.append(shared)
    else:
        sweep.progress(len(items), len(items))
    reader.close()
    return sorted(found, key=lambda item: (-item.resident_pages - item.swap_pages, item.name))


def read_meminfo_pages(name: str, machine: Machine) -> int:
    """Return a figure of /proc/meminfo in pages, 0 if it is not there."""
    try:
        sizes = parse_meminfo(read_file(f"{machine.root}/meminfo"))
    except OSError:
        return 0
    return sizes.get(name, 0) // machine.page_size_bytes


def _hidden_notes(finder: Finder, items: list[FoundObject]) -> Iterator[str]:
    """Yield the tmpfs mounts that own more than their files and the open ones do."""
    size = finder.sweep.machine.page_size_bytes
    links = _link_pages(finder)
    for device, pages in links.items():
        if device in finder.tmpfs.places:
            yield _LINKS.format(finder.tmpfs.places[device].mount_point, pages)
    owned = {device: pages * size for device, pages in links.items()}
    in_doubt = set()
    for item in items:
        if item.status is None and item.file is None:
            in_doubt.add(item.key[0])
        owned[item.key[0]] = owned.get(item.key[0], 0) + item.blocks * _BLOCK_BYTES
    for device, place in finder.tmpfs.places.items():
        if device in in_doubt:
            continue
        try:
            figures = place.statvfs()
        except OSError:
            continue
        used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
        hidden = (used - owned.get(device, 0)) // size
        if hidden > 0:
            where = _where_hidden(finder, device)
            yield (
                f"tmpfs on {place.mount_point}: {hidden} pages are in files that cannot be "
                f"listed: {where}"
            )


def _link_pages(finder: Finder) -> dict[int, int]:
    """Return the pages of the symbolic links of each tmpfs that has such."""
    size = finder.sweep.machine.page_size_bytes
    return {
        device: sum(blocks.values()) * _BLOCK_BYTES // size
        for device, blocks in finder.links.items()
    }


def _where_hidden(finder: Finder, device: int) -> str:
    """Return where files of a tmpfs may be that were not found."""
    places = ["deleted and held by the kernel"]
    if device in finder.layers:
        places.append("deleted and held by a process by way of an overlay")
    if device in finder.tmpfs.unread:
        places.append("in directories that could not be read")
    return ", ".join([*places, "or below another mount"])


def _layer_notes(finder: Finder, items: list[FoundObject]) -> list[str]:
    in_use = {item.key[0] for item in items if item.blocks}
    places = [place for device, place in finder.layers.items() if device in in_use]
    return [_LAYER.format(place) for place in sorted(places)]


def loop_notes(machine: Machine) -> Iterator[str]:
    """Yield the loop devices over files that were deleted: no process holds these."""
    for device, path in list_deleted_backing_files(machine):
        yield f"loop device {device} holds a deleted file: {path}"


@dataclass(slots=True)
class Keepers:
    """
    Asks what may keep objects that have one holder and no name, once there is any.

    :param finder: one that has found all objects.
    """

    finder: Finder
    _loops: "_Loops | None" = field(default=None, init=False)
    _in_message: str | None = field(default=None, init=False)

    def settle(self, item: FoundObject, shared: ObjectFacts) -> ObjectFacts:
        """
        Return an object with what may keep it once its only holder has ended.

        :raises Stopped: if the scan is to end.
        """
        has_memory = shared.resident_pages or shared.swap_pages
        if shared.sole_keeper is None or not has_memory:
            return shared
        if self._loops is None:
            self._loops = _ask_loops(self.finder.sweep.machine)
        if item.key[:2] in self._loops.files:
            return replace(shared, is_kept=True)
        doubt = self._doubt(item, self._loops)
        return replace(shared, doubt=doubt) if doubt else shared

    def _doubt(self, item: FoundObject, loops: "_Loops") -> str:
        if item.key[0] in self.finder.tmpfs.covered:
            return _MOUNTED
        if not loops.is_complete:
            return _UNDER_LOOPS
        if self._in_message is None:
            may_ask = self.finder.sweep.machine.may("scm_fds")
            self._in_message = self._ask_sockets() if may_ask else _NOT_TOLD
        return self._in_message

    def _ask_sockets(self) -> str:
        """Say whether any descriptor is in a message: of which file is not to be known."""
        sweep, asked, is_told = self.finder.sweep, set(), False
        for facts in sweep.processes:
            for link, place in facts.sockets.items():
                if link in asked:
                    continue
                sweep.machine.check_stop()
                try:
                    count = read_message_descriptors(f"{sweep.machine.root}/{place}")
                except OSError:
                    # Closed here, but another process may have it as well.
                    continue
                if count:
                    return _IN_MESSAGES
                is_told = is_told or count is not None
                asked.add(link)
        return "" if is_told or not asked or has_message_counts() else _NOT_TOLD


@dataclass(slots=True)
class _Loops:
    """
    The files without a name that loop devices have.

    :param files: device and inode of each.
    :param is_complete: whether every loop device said which it has.
    """

    files: set[tuple[int, int]] = field(default_factory=set)
    is_complete: bool = True


def _ask_loops(machine: Machine) -> _Loops:
    """Ask in another thread, which is left alone if it does not come back."""
    names = [name for name, _ in list_deleted_backing_files(machine)]
    if not names:
        return _Loops()

    def ask() -> _Loops:
        found = _Loops()
        for name in names:
            try:
                found.files.add(read_backing_inode(name, machine))
            except OSError:
                found.is_complete = False
        return found

    unknown = _Loops(is_complete=False)
    return ask_patiently(ask, unknown) or unknown
