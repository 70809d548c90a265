"""Every shared-memory object of the machine, once, with its holders."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import parse_meminfo
from memlens.objects.references import list_deleted_backing_files
from memlens.residency.walk import Walking
from memlens.scan.facts import Want
from memlens.scan.machine import Machine, Progress, Stop, Stopped
from memlens.scan.objectnames import no_such_object, resolve_name
from memlens.scan.sweep import Sweep
from memlens.shm.found import FoundObject
from memlens.shm.keepers import Keepers
from memlens.shm.objects import Inspector
from memlens.shm.records import Inventory, SharedObject, mapper_notes
from memlens.shm.sources import Finder

# Progress is told after so many objects.
_STEP = 64

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


def list_shared_memory(
    name: str | None = None,
    *,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Inventory:
    """
    Return every shared-memory object of the machine, once.

    :param name: the only object wanted, as ``resolve_name`` reads it; with it
        ``remainder_pages`` says nothing.
    :param proc: root of the /proc to read.
    :param budget_s: seconds after which the scan ends, with the rest in ``missed``.
    :param on_progress: called with what is done and what there is in all: processes,
        then objects.
    :param should_stop: asked often; True ends the scan, with the rest in ``missed``.
    :raises Unsupported: if ``proc`` is none, or what is named is no shared memory.
    :raises MemlensError: if no object has this name.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    wanted = None if name is None else resolve_name(name, machine)
    want = Want(objects=True, present=name is not None, identity=False)
    sweep = Sweep(machine, want)
    sweep.run()
    only = None if wanted is None else wanted.matches
    scan = read_objects(sweep, only=only, tells_freed=wanted is not None)
    if wanted is not None and not scan.objects and sweep.is_complete:
        raise no_such_object(wanted)
    notes = [*scan.notes]
    if sweep.may_miss_holders():
        notes += mapper_notes(scan.objects)
    notes += sweep.notes()
    if name is None:
        notes += loop_notes(machine)
    return Inventory(
        page_size_bytes=machine.page_size_bytes,
        shmem_pages=read_meminfo_pages("Shmem", machine),
        objects=scan.objects,
        missed=tuple(sweep.missed),
        notes=tuple(notes),
        cost=machine.cost(),
        is_complete=sweep.is_complete,
    )


class ObjectScan(NamedTuple):
    """
    Objects, the largest first, and what to know about what is not among them.

    :param is_walked: whether the page-cache walk could be used, for slots.
    """

    objects: tuple[SharedObject, ...]
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
    reader: Inspector, items: list[FoundObject], keepers: Keepers | None
) -> list[SharedObject]:
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
        if device in finder.places:
            yield _LINKS.format(finder.places[device].mount_point, pages)
    owned = {device: pages * size for device, pages in links.items()}
    in_doubt = set()
    for item in items:
        if item.status is None and item.file is None:
            in_doubt.add(item.key[0])
        owned[item.key[0]] = owned.get(item.key[0], 0) + item.blocks * _BLOCK_BYTES
    for device, place in finder.places.items():
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
    if device in finder.unread:
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
