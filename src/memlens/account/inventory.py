"""Every shared-memory object of the machine, once, with its holders."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from memlens.account.charges import Charges
from memlens.account.facts import Missed, ObjectUse, ProcessFacts, Progress, Stop, Stopped, Want
from memlens.account.finding import GONE, NOT_SHMEM, Finder, FoundObject
from memlens.account.model import Cost
from memlens.account.naming import no_such_object, resolve_name
from memlens.account.objects import ObjectReader
from memlens.account.presence import PageTables
from memlens.account.sharedobject import Holder, SharedObject
from memlens.account.sweep import Sweep
from memlens.account.walking import Walking
from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.backing import Backing
from memlens.kernel.cgroups import cgroup_paths_by_inode, find_hierarchy
from memlens.kernel.kpage import KpageFile
from memlens.kernel.procfs import read_file
from memlens.kernel.swaps import parse_meminfo
from memlens.kernel.syscalls import statx_cached
from memlens.pages.classes import REASONS, PageClass, Verdict
from memlens.pages.distinct import distinct
from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    merge_runs,
    one_run,
    replace_runs,
    restrict_runs,
    select_runs,
    union_runs,
)

# Progress is told after so many objects.
_STEP = 64
_LABELS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Inventory:
    """
    Every shared-memory object.

    :param shmem_pages: ``Shmem`` of /proc/meminfo.
    :param missed: what could not be looked at.
    :param notes: what to know about the remainder.
    :param is_complete: False if the scan was stopped, or its budget spent.
    """

    page_size_bytes: int
    shmem_pages: int
    objects: tuple[SharedObject, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]
    cost: Cost
    is_complete: bool = True

    @property
    def remainder_pages(self) -> int:
        """Return what of ``Shmem`` belongs to none of the objects."""
        return self.shmem_pages - sum(item.resident_pages for item in self.objects)


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
    wanted = None if name is None else resolve_name(name, proc)
    want = Want(objects=True, present=name is not None, identity=False)
    sweep = Sweep(proc, want, budget_s, on_progress, should_stop)
    sweep.run()
    scan = read_objects(sweep, only=None if wanted is None else wanted.matches)
    if wanted is not None and not scan.objects and sweep.is_complete:
        raise no_such_object(wanted)
    notes = [*scan.notes]
    if sweep.gone:
        notes.append(f"{sweep.gone} processes ended during the scan")
    return Inventory(
        page_size_bytes=features.page_size_bytes(),
        shmem_pages=read_meminfo_pages("Shmem", proc),
        objects=scan.objects,
        missed=tuple(sweep.missed),
        notes=tuple(notes),
        cost=sweep.cost(),
        is_complete=sweep.is_complete,
    )


@dataclass(frozen=True, slots=True)
class ObjectScan:
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
) -> ObjectScan:
    """
    Look at every object that a sweep found, and at those that no process holds.

    :param only_swapped: whether objects without swapped pages are left out.
    :param only: whether an object is looked at; None for all.
    :param keep_slots: whether the slots of swapped pages are wanted.
    """
    finder = Finder(sweep)
    items = finder.find()
    if only is not None:
        items = [item for item in items if only(item)]
    disabled = features.read_disabled()
    walking = Walking(sweep.meter, "cachewalk" not in disabled, keep_slots, sweep.proc)
    reader = _Reader(sweep, finder, walking, only_swapped)
    found = []
    for number, item in enumerate(items):
        if number % _STEP == 0:
            sweep.progress(number, len(items))
        try:
            sweep.check_stop()
            shared = reader.read(item)
        except Stopped:
            sweep.miss_rest(f"{len(items) - number} shared-memory objects")
            break
        if shared is not None:
            found.append(shared)
    else:
        sweep.progress(len(items), len(items))
    reader.close()
    sweep.missed += [*finder.missed, *reader.list_missed()]
    found.sort(key=lambda item: (-item.resident_pages - item.swap_pages, item.name))
    notes = [] if only is not None else [*_hidden_notes(finder, items)]
    notes += dict.fromkeys(walking.notes)
    return ObjectScan(tuple(found), tuple(notes), walking.is_usable())


def read_meminfo_pages(name: str, proc: str) -> int:
    """Return a figure of /proc/meminfo in pages, 0 if it is not there."""
    try:
        sizes = parse_meminfo(read_file(f"{proc}/meminfo"))
    except OSError:
        return 0
    return sizes.get(name, 0) // features.page_size_bytes()


@dataclass(slots=True)
class _Reader:
    """Looks at objects, one after the other."""

    sweep: Sweep
    finder: Finder
    walking: Walking
    only_swapped: bool
    gone: int = 0
    _refused: dict[str, list[str]] = field(default_factory=dict)
    _tables: PageTables = field(init=False)
    _cgroups: dict[int, str] | None = None

    def __post_init__(self) -> None:
        sweep, charges = self.sweep, None
        if not self.only_swapped and features.is_pfn_visible():
            try:
                charges = Charges(KpageFile("kpagecgroup", sweep.proc, sweep.meter))
            except MemlensError:
                pass
        self._tables = PageTables(sweep.proc, sweep.meter, sweep.use_scan(), charges)

    def close(self) -> None:
        """Close what was opened to look at objects."""
        self._tables.close()
        if self._tables.charges is not None:
            self._tables.charges.file.close()

    def read(self, item: FoundObject) -> SharedObject | None:
        """
        Return an object; what cannot be opened is all ``unknown``.

        :return: None if it is none, or may be left out.
        :raises Stopped: if the scan is to end.
        """
        if item.file is not None and not item.uses and not item.file.blocks:
            # It owns no memory, so that there is nothing to ask it.
            pages = _pages(item.size_bytes)
            runs = one_run(0, pages, PageClass.NONE) if pages else EMPTY
            return None if self.only_swapped else self._object(item, runs, (), None)
        backing = self.finder.open(item)
        if isinstance(backing, str):
            self.gone += backing == GONE
            is_none = backing in (GONE, NOT_SHMEM)
            return None if is_none else self._refuse(item, backing)
        try:
            return self._ask(item, backing)
        except OSError as error:
            return self._refuse(item, os.strerror(error.errno or 0))
        finally:
            backing.close()

    def list_missed(self) -> Iterator[Missed]:
        """Yield the objects that could not be looked at, by the reason."""
        for reason, labels in self._refused.items():
            named = ", ".join(labels[:_LABELS_NAMED])
            more = ", ..." if len(labels) > _LABELS_NAMED else ""
            count = f"{len(labels)} objects ({named}{more})" if len(labels) > 1 else named
            yield Missed(count, reason)

    def _refuse(self, item: FoundObject, reason: str) -> SharedObject | None:
        self._refused.setdefault(reason, []).append(item.label)
        if self.only_swapped:
            return None
        pages = _pages(item.size_bytes)
        runs = one_run(0, pages, PageClass.UNKNOWN) if pages else EMPTY
        return self._object(item, runs, (reason,), None)

    def _ask(self, item: FoundObject, backing: Backing) -> SharedObject | None:
        sweep = self.sweep
        reader = ObjectReader(
            backing,
            features.read_disabled(),
            features.has_cachestat(),
            sweep.check_stop,
            self.walking,
        )
        pages = backing.size_pages()
        if self.only_swapped and reader.is_without_swap(pages):
            return None
        runs = reader.verdicts(0, pages) if pages else EMPTY
        if not self.only_swapped:
            runs = self._mark_present(runs, item)
        runs, reasons = _split_reasons(runs)
        if reasons:
            self._refused.setdefault("; ".join(reasons), []).append(item.label)
        found = self._object(item, runs, reasons, backing)
        if reader.walk is None or not self.walking.is_eager:
            return found
        return replace(found, slots=reader.walk.take_slots())

    def _mark_present(self, runs: Runs, item: FoundObject) -> Runs:
        """
        Call ``present`` what is in RAM and mapped by anybody.

        Holders are asked one after the other, and only about what none before them maps.
        """
        left = select_runs(runs, runs.value == PageClass.CACHED)
        for facts, use in item.uses:
            if use.mapping is None or not len(left):
                continue
            self.sweep.check_stop()
            mapped, is_huge = self._tables.present(facts, use, left)
            item.is_huge |= is_huge
            both = restrict_runs(left, mapped)
            value = np.full(len(both), PageClass.PRESENT, np.uint8)
            found = Runs(both.first, both.pages, value)
            runs = replace_runs(runs, found)
            left = replace_runs(left, found)
            left = select_runs(left, left.value == PageClass.CACHED)
        return runs

    def _object(
        self, item: FoundObject, runs: Runs, reasons: tuple[str, ...], backing: Backing | None
    ) -> SharedObject:
        return SharedObject(
            kind=item.kind,
            name=item.name,
            device=f"{os.major(item.key[0]):02x}:{os.minor(item.key[0]):02x}",
            inode=item.key[1],
            size_bytes=item.size_bytes,
            uid=item.uid,
            runs=runs,
            holders=_holders(item.uses, _pages(item.size_bytes)),
            marks=self.finder.marks(item, backing),
            reasons=reasons,
            born_s=_born_s(item, backing),
            cgroup=self._cgroup(item),
        )

    def _cgroup(self, item: FoundObject) -> str | None:
        charges = self._tables.charges
        inode = None if charges is None else charges.inodes.get(item.key)
        if inode is None:
            return None
        if self._cgroups is None:
            self._cgroups = cgroup_paths_by_inode(find_hierarchy(self.sweep.proc))
        return self._cgroups.get(inode)


def _born_s(item: FoundObject, backing: Backing | None) -> float | None:
    """Return when it was made; before v6.0 tmpfs kept only when it was changed."""
    if backing is not None:
        try:
            born_s = statx_cached(f"/proc/self/fd/{backing.fd}", 0).born_s
        except OSError:
            born_s = 0.0
        if born_s:
            return born_s
    if item.segment is not None:
        return float(item.segment.changed_s)
    if item.status is not None:
        return item.status.st_ctime
    return item.file.changed_s if item.file is not None else None


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // features.page_size_bytes())


def _hidden_notes(finder: Finder, items: list[FoundObject]) -> Iterator[str]:
    """Yield the tmpfs mounts that own more than their files and the open ones do."""
    owned: dict[int, int] = {}
    for item in items:
        owned[item.key[0]] = owned.get(item.key[0], 0) + item.blocks * 512
    for device, (base, mount_point) in finder.places.items():
        try:
            figures = os.statvfs(base + mount_point)
        except OSError:
            continue
        used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
        hidden = (used - owned.get(device, 0)) // features.page_size_bytes()
        if hidden > 0:
            yield (
                f"tmpfs on {mount_point}: {hidden} pages are in files that cannot be listed: "
                "deleted and held by the kernel, or below another mount"
            )


def _split_reasons(runs: Runs) -> tuple[Runs, tuple[str, ...]]:
    is_open = runs.value >= Verdict.FIRST_REASON
    reasons = tuple(
        REASONS[value - Verdict.FIRST_REASON] for value in distinct(runs.value[is_open])
    )
    value = np.minimum(runs.value, np.uint8(PageClass.UNKNOWN))
    return merge_runs(Runs(runs.first, runs.pages, value)), reasons


def _holders(uses: Iterable[tuple[ProcessFacts, ObjectUse]], pages: int) -> tuple[Holder, ...]:
    by_process: dict[int, list[tuple[ProcessFacts, ObjectUse]]] = {}
    for facts, use in uses:
        by_process.setdefault(facts.pid, []).append((facts, use))
    return tuple(_holder(by_process[pid], pages) for pid in sorted(by_process))


def _holder(uses: list[tuple[ProcessFacts, ObjectUse]], pages: int) -> Holder:
    size = features.page_size_bytes()
    ranges = []
    for _, use in uses:
        if use.mapping is not None:
            first = use.mapping.offset_bytes // size
            ranges.append((first, first + (use.mapping.stop - use.mapping.start) // size))
    covered = union_runs(
        [Runs(np.array([a]), np.array([b - a]), np.ones(1, np.uint8)) for a, b in ranges]
    )
    present = None
    if any(use.present is not None for _, use in uses):
        mapped = union_runs([use.present for _, use in uses if use.present is not None])
        present = int(mapped.pages.sum())
    facts = uses[0][0]
    return Holder(
        pid=facts.pid,
        name=facts.name,
        mapped_pages=int(clip_runs(covered, 0, pages).pages.sum()) if pages else 0,
        present_pages=present,
        is_open=any(use.mapping is None for _, use in uses),
        ranges=tuple(sorted(set(ranges))),
    )
