"""
Pages of files on an overlay of which a layer may be on tmpfs.

Through an overlay cachestat answers for a file that has no pages.  mincore and SEEK_DATA do
not tell a copy in the swap cache from a cached page, nor what was set aside from a hole; of
files on a disk there is neither.  The page-cache walk goes by the kernel's own mapping and
tells; without it the totals of the mapping do, or nothing.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.kernel.mounts import HUGETLBFS_MAGIC, KERNEL_MAGICS, RAMFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.swaps import is_swap_cache_empty
from memlens.objects.backing import Backing, is_all_data
from memlens.objects.overlay import is_maybe_copied_up, is_maybe_on_swap
from memlens.pages.classes import Evidence, PageClass, Reason, Verdict, object_verdicts
from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    concat_runs,
    count_runs,
    encode_runs,
    merge_runs,
    one_run,
    replace_runs,
    restrict_runs,
    select_runs,
    shift_runs,
)
from memlens.residency.verdicts import Settler
from memlens.residency.walk import Walking, record_evidence

_VALUES = 256
_MINCORE_PAGES = 1 << 16
_CACHED, _ON_DISK, _NONE = (
    int(kind) for kind in (PageClass.CACHED, PageClass.ON_DISK, PageClass.NONE)
)
_SWAPPED, _COPIED = int(PageClass.SWAPPED), int(PageClass.SWAP_CACHED)
_RAM_OR_NOT, _DISK_OR_HOLE = int(Reason.RAM_OR_NOT), int(Reason.DISK_OR_HOLE)
_MARKERS = [int(kind) for kind in (PageClass.GUARD, PageClass.POISONED)]
_OWN = [*_MARKERS, int(PageClass.PRESENT), int(PageClass.ZERO), _SWAPPED]
_EVICTED = int(Evidence.EVICTED | Evidence.DATA)
_IS_DOUBTFUL = np.zeros(_VALUES, bool)
_IS_DOUBTFUL[[_CACHED, _ON_DISK, _NONE, _RAM_OR_NOT, _DISK_OR_HOLE]] = True


@dataclass(slots=True)
class LayerSettler:
    """
    Settles what an overlay leaves open, or says it wrong of.

    :param settler: knows the totals of its mappings.
    :param walking: the page-cache walk.
    """

    settler: Settler
    walking: Walking
    _on_tmpfs: dict[str, bool] = field(default_factory=dict)

    def is_asked(self, mapping: Mapping, runs: Runs) -> bool:
        """Return whether any verdict of a mapping of an overlay may be wrong."""
        if not _is_doubtful(runs.value).any():
            return False
        known = self._on_tmpfs.get(mapping.device)
        if known is None:
            known = is_maybe_on_swap(self.settler.process, mapping)
            self._on_tmpfs[mapping.device] = known
        # After a copy-up the walk has told all there is.
        return known and not is_maybe_copied_up(self.settler.process, mapping)

    def settle(self, mapping: Mapping, runs: Runs, backing: Backing, is_whole: bool) -> Runs:
        """
        Return the verdicts of a mapping that ``is_asked`` about.

        :param backing: the file, open through the overlay.
        :param is_whole: whether the runs cover the whole mapping.
        """
        doubtful = select_runs(runs, _is_doubtful(runs.value))
        found = self._walk(mapping, doubtful, backing)
        if found is not None:
            return replace_runs(runs, found)
        return self._by_totals(mapping, runs, backing, is_whole)

    def _walk(self, mapping: Mapping, doubtful: Runs, backing: Backing) -> Runs | None:
        """Return verdicts by the page cache of the file below, None if there is none."""
        pgoff = mapping.offset_bytes // self.walking.machine.page_size_bytes
        first, stop = pgoff + int(doubtful.first[0]), pgoff + int(doubtful.stop[-1])
        records = self.walking.walk_mapping(
            self.settler.process.tid, mapping, first, stop, is_of_layer=True
        )
        if records is None or records.object.magic in KERNEL_MAGICS:
            return None
        if records.object.magic != TMPFS_MAGIC:
            return doubtful
        evidence = record_evidence(records, "shmem", first, stop)
        evidence = restrict_runs(shift_runs(evidence, -pgoff), doubtful)
        found = merge_runs(Runs(evidence.first, evidence.pages, _BY_WALK[evidence.value]))
        evicted = select_runs(evidence, evidence.value == _EVICTED)
        if not len(evicted) or is_swap_cache_empty(self.walking.machine):
            return found
        return replace_runs(found, _with_copies(evicted, doubtful, backing, pgoff))

    def copied_up(self, mapping: Mapping, asked: Runs) -> Runs | None:
        """
        Return what can be said of pages of a mapping after a copy-up.

        None if there was none: then the file answers that can be opened.

        :param asked: pages from the start of the mapping.
        """
        process = self.settler.process
        if not is_maybe_copied_up(process, mapping):
            return None
        value = np.full(len(asked), Reason.COPIED_UP, np.uint8)
        found = MappingWalk(self.walking, process.tid, is_overlay=True).verdicts(mapping, asked)
        return replace_runs(Runs(asked.first, asked.pages, value), found)

    def _by_totals(
        self, mapping: Mapping, runs: Runs, backing: Backing, is_whole: bool
    ) -> Runs:
        counts = count_runs(runs, _VALUES)
        table = np.arange(_VALUES, dtype=np.uint8)
        table[_NONE] = Reason.NONE_OR_PREALLOCATED
        swap = self.settler.pages(mapping, "Swap")
        if swap is not None and is_whole:
            swap -= int(counts[_SWAPPED])
        # A sum proves nothing where other pages are open that may be in it.
        is_closed = is_whole and not counts[Verdict.ASK :].any()
        on_disk, cached = int(counts[_ON_DISK]), int(counts[_CACHED])
        if swap == 0:
            pass
        elif is_closed and swap == on_disk:
            table[_ON_DISK] = _SWAPPED
        elif is_closed and swap == on_disk + cached and not _is_any_hidden(mapping, counts):
            table[_ON_DISK], table[_CACHED] = _SWAPPED, _COPIED
        else:
            table[_ON_DISK] = table[_CACHED] = Reason.OVERLAY_SWAP
        if counts[_NONE] and is_all_data(backing):
            table[_NONE] = _NONE
        return merge_runs(Runs(runs.first, runs.pages, table[runs.value]))


def _is_any_hidden(mapping: Mapping, counts: NDArray[np.int64]) -> bool:
    """
    Return whether Swap may count pages of the object that other pages hide here.

    Of a mapping that is shared, or may not be written, smaps counts all slots of the object.
    """
    if mapping.is_shared:
        # Its present pages are the object's own, which are on no slot.
        return bool(counts[_MARKERS].any())
    return "w" not in mapping.permissions and bool(counts[_OWN].any())


def _with_copies(evicted: Runs, before: Runs, backing: Backing, pgoff: int) -> Runs:
    """
    Return the verdicts of pages whose entry is a slot, by mincore before and after the walk.

    :param before: verdicts by mincore and SEEK_DATA before: ``CACHED`` was in RAM.
    """
    if (before.value == _RAM_OR_NOT).any():
        return _all_of(evicted, int(Reason.SWAPPED_OR_SWAP_CACHED))
    parts = []
    for first, pages, _ in evicted:
        for start in range(first, first + pages, _MINCORE_PAGES):
            count = min(_MINCORE_PAGES, first + pages - start)
            is_resident = backing.mincore(pgoff + start, count)
            value = np.where(is_resident, np.uint8(_CACHED), np.uint8(_ON_DISK))
            parts.append(encode_runs(value, start))
    after = concat_runs(parts)
    settled = [
        restrict_runs(
            _all_of(select_runs(after, after.value == now), verdict),
            select_runs(before, before.value == then),
        )
        for then, now, verdict in (
            (_CACHED, _CACHED, _COPIED),
            (_ON_DISK, _ON_DISK, _SWAPPED),
            (_DISK_OR_HOLE, _ON_DISK, _SWAPPED),
        )
    ]
    # What was another thing before than after is on the move.
    found = _all_of(evicted, int(Reason.CHANGING))
    for part in settled:
        found = replace_runs(found, part)
    return found


def _all_of(runs: Runs, value: int) -> Runs:
    return merge_runs(Runs(runs.first, runs.pages, np.full(len(runs), value, np.uint8)))


def _is_doubtful(values: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return _IS_DOUBTFUL[values]


def _by_walk() -> NDArray[np.uint8]:
    """What the page cache of a tmpfs file says of a page, by ``Evidence``."""
    table = np.full(_VALUES, Reason.CHANGING, np.uint8)
    table[Evidence.CACHE | Evidence.DATA] = _CACHED
    table[Evidence.CACHE | Evidence.HOLE] = PageClass.PREALLOCATED
    table[Evidence.NEITHER | Evidence.HOLE] = _NONE
    table[_EVICTED] = _SWAPPED
    return table


_BY_WALK = _by_walk()

# What the page cache says of the very file that is mapped, where none can be opened.
#
# Everything that can be opened through an overlay answers for the file that is there now,
# while a mapping made before a copy-up keeps the pages of the lower one; other objects may
# not be opened at all, as under a lease.  The kernel's mapping names its file, and the walk
# goes by the mapping (docs/how-it-works/cachewalk.md).


# What is walked lies on no overlay: there it is the file of a layer.
_KINDS = {TMPFS_MAGIC: "shmem", HUGETLBFS_MAGIC: "hugetlb", RAMFS_MAGIC: "ramfs"}

# Of a file on disk the walk does not tell whether the disk holds what is not in RAM.
_OPEN = (Reason.RAM_OR_NOT, Reason.DISK_OR_HOLE)


@dataclass(frozen=True, slots=True)
class MappingWalk:
    """
    The walk of mappings of overlays, and of what may not be opened.

    :param walking: of the scan.
    :param pid: whose mappings they are.
    :param is_overlay: whether the mappings are of overlays.
    """

    walking: Walking
    pid: int
    is_overlay: bool

    def verdicts(self, mapping: Mapping, asked: Runs) -> Runs:
        """
        Return what can be said of pages of a mapping, as runs inside ``asked``.

        :param asked: pages from the start of the mapping.
        """
        pgoff = mapping.offset_bytes // self.walking.machine.page_size_bytes
        first, stop = pgoff + int(asked.first[0]), pgoff + int(asked.stop[-1])
        records = self.walking.walk_mapping(
            self.pid, mapping, first, stop, is_of_layer=self.is_overlay
        )
        if records is None or records.object.magic in KERNEL_MAGICS:
            return EMPTY
        kind = _KINDS.get(records.object.magic, "file")
        evidence = record_evidence(records, kind, first, stop)
        pages = -(-records.object.size_bytes // self.walking.machine.page_size_bytes)
        evidence = _with_end(evidence, pages, first, stop)
        table = object_verdicts(kind)[0].copy()
        if records.is_swap.any() and is_swap_cache_empty(self.walking.machine):
            table[Evidence.EVICTED | Evidence.DATA] = PageClass.SWAPPED
        found = Runs(evidence.first, evidence.pages, table[evidence.value])
        said = select_runs(found, ~np.isin(found.value, _OPEN))
        return restrict_runs(shift_runs(merge_runs(said), -pgoff), asked)


def _with_end(evidence: Runs, end: int, first: int, stop: int) -> Runs:
    """Return the evidence with pages from ``end`` on past the end of the file."""
    end = min(max(end, first), stop)
    if end == stop:
        return evidence
    past = one_run(end, stop - end, Evidence.PAST_END)
    return concat_runs([clip_runs(evidence, first, end), past])
