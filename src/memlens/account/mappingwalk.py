"""
What the page cache says of the very file that is mapped, where none can be opened.

Everything that can be opened through an overlay answers for the file that is there now,
while a mapping made before a copy-up keeps the pages of the lower one; other objects may
not be opened at all, as under a lease.  The kernel's mapping names its file, and the walk
goes by the mapping (docs/cachewalk.md).
"""

from dataclasses import dataclass

import numpy as np

from memlens.account.walking import Walking, record_evidence
from memlens.kernel.filesystems import HUGETLBFS_MAGIC, KERNEL_MAGICS, RAMFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.maps import Mapping
from memlens.kernel.swapcache import is_swap_cache_empty
from memlens.pages.classes import Evidence, PageClass, Reason, object_verdicts
from memlens.pages.runs import (
    EMPTY,
    Runs,
    clip_runs,
    concat_runs,
    merge_runs,
    one_run,
    restrict_runs,
    select_runs,
    shift_runs,
)

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
    :param page_size_bytes: size of a page.
    :param is_overlay: whether the mappings are of overlays.
    """

    walking: Walking
    pid: int
    page_size_bytes: int
    is_overlay: bool

    def verdicts(self, mapping: Mapping, asked: Runs) -> Runs:
        """
        Return what can be said of pages of a mapping, as runs inside ``asked``.

        :param asked: pages from the start of the mapping.
        """
        pgoff = mapping.offset_bytes // self.page_size_bytes
        first, stop = pgoff + int(asked.first[0]), pgoff + int(asked.stop[-1])
        records = self.walking.walk_mapping(
            self.pid, mapping, first, stop, is_of_layer=self.is_overlay
        )
        if records is None or records.object.magic in KERNEL_MAGICS:
            return EMPTY
        kind = _KINDS.get(records.object.magic, "file")
        evidence = record_evidence(records, kind, first, stop)
        pages = -(-records.object.size_bytes // self.page_size_bytes)
        evidence = _with_end(evidence, pages, first, stop)
        table = object_verdicts(kind)[0].copy()
        if records.is_swap.any() and is_swap_cache_empty(self.walking.proc):
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
