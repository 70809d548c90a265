"""Records of ``memlens ps`` and ``sharing``."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.maps import Mapping
from memlens.record import column, record
from memlens.report import Report, section, table
from memlens.units import signed

_ENTRIES = "private pages on swap: each swap entry of its page table, whole"
_SHARE = (
    "its part of swap: each slot divided among those that have it, private pages after a fork "
    "and pages of shared memory that several map"
)
_PSS = "each page divided by how often it is mapped, by whomever"


@record("sharing.processes", help="One process; parents come before their children.")
class ProcessShare:
    """One process; the fork columns are of what was forked from a process of the scan."""

    pid: int = column("PID", key=True, help="as /proc has it")
    parent: int | None = column(
        "parent",
        absent="",
        rank=1,
        help="PID of the process of the scan that it was forked from; null if there is none, "
        "or it has executed another program since",
    )
    rss_pages: int = column(
        "RSS",
        unit="pages",
        metric="gauge",
        hue="ram",
        help="mapped, as the kernel counts them; without those that moved",
    )
    pss_pages: float = column("PSS", unit="pages", metric="gauge", hue="ram", help=_PSS)
    uss_pages: int = column(
        "USS", unit="pages", metric="gauge", hue="ram", help="those that nobody else maps"
    )
    freed_on_exit_pages: int | None = column(
        "freed",
        unit="pages",
        metric="gauge",
        help="free once it has ended: private ones that nobody else maps, and those of "
        "shared-memory objects that go with it; pages of files stay cached",
    )
    swap_entries_pages: int | None = column(
        "swap", unit="pages", metric="gauge", hue="swap", rank=2, help=_ENTRIES
    )
    swap_share_bytes: int | None = column(
        "swap\nshare", unit="bytes", metric="gauge", hue="swap", rank=3, help=_SHARE
    )
    moved_pages: int = column(
        "moved",
        unit="pages",
        rank=4,
        help="changed while they were read; in no other number",
    )
    shared_with_parent_pages: int | None = column(
        "with\nparent",
        unit="pages",
        hue="shared",
        absent="",
        rank=1,
        help="of RSS, frames that the parent maps too",
    )
    copied_pages: int | None = column(
        "copied\nsince",
        unit="pages",
        absent="",
        rank=1,
        help="of RSS, where the parent has another page at the same address: one of the two "
        "has written since the fork",
    )
    new_private_pages: int | None = column(
        "new\nsince",
        unit="pages",
        absent="",
        rank=1,
        help="of RSS, private where the parent has none",
    )
    new_object_pages: int | None = column(
        "mapped\nsince",
        unit="pages",
        absent="",
        rank=2,
        help="of RSS, of files and shared memory where the parent maps none: brought in since "
        "the fork, not made by it",
    )
    name: str = column("name", unit="name", help="its title, or comm; raw")


@record("sharing.mappings", help="One mapping; only those that have any page in RAM.")
class MappingShare:
    """One mapping of a process; the figures are those of ``ProcessShare``."""

    pid: int = column("PID", key=True, help="as /proc has it")
    start_address: int = column("address", unit="address", key=True, help="its first, signed")
    stop_address: int = column("end", unit="address", rank=4, help="the first after it, signed")
    permissions: str = column("perm", rank=1, help="as maps has them")
    rss_pages: int = column("RSS", unit="pages", hue="ram", help="in RAM")
    pss_pages: float = column(
        "PSS", unit="pages", hue="ram", help="in RAM, each page divided among those that map it"
    )
    uss_pages: int = column("USS", unit="pages", hue="ram", help="in RAM, of no other process")
    shared_with_parent_pages: int | None = column(
        "with\nparent",
        unit="pages",
        hue="shared",
        absent="",
        rank=1,
        help="the same frames as the parent",
    )
    copied_pages: int | None = column(
        "copied\nsince", unit="pages", absent="", rank=1, help="copied since the fork"
    )
    new_private_pages: int | None = column(
        "new\nsince", unit="pages", absent="", rank=1, help="private, new since the fork"
    )
    new_object_pages: int | None = column(
        "mapped\nsince",
        unit="pages",
        absent="",
        rank=2,
        help="of files and shared memory, mapped since the fork",
    )
    path: str = column("mapping", unit="name", help="as maps names it, raw; empty: anonymous")

    @classmethod
    def of(
        cls, pid: int, mapping: Mapping, counts: "ShareCounts", number: int, is_fork: bool
    ) -> "MappingShare":
        """Return the row of a mapping."""
        return cls(
            pid=pid,
            start_address=signed(mapping.start),
            stop_address=signed(mapping.stop),
            permissions=mapping.permissions,
            rss_pages=int(counts.rss[number]),
            pss_pages=float(counts.pss[number]),
            uss_pages=int(counts.uss[number]),
            shared_with_parent_pages=int(counts.shared[number]) if is_fork else None,
            copied_pages=int(counts.copied[number]) if is_fork else None,
            new_private_pages=int(counts.new_private[number]) if is_fork else None,
            new_object_pages=int(counts.new_objects[number]) if is_fork else None,
            path=mapping.path,
        )


@record("sharing.pairs", help="Two processes of the scan; every pair once.")
class PairShare:
    """Two processes and the distinct frames that both map."""

    a: int = column("PID", key=True, help="the PID of one")
    b: int = column("and PID", key=True, help="the PID of the other")
    shared_pages: int = column(
        "shared", unit="pages", hue="shared", metric="gauge", help="distinct frames of both"
    )


@record("sharing.total", help="All processes of the scan together.")
class SharingTotal:
    """All processes of the scan together."""

    distinct_pages: int | None = column(
        "distinct", unit="pages", metric="gauge", help="frames that any of them maps"
    )
    is_hidden: bool = column(
        "hidden",
        help="whether this reader may not see frames: then there are no pairs, and the rest is "
        "what smaps says",
    )


class Sharing(Report, schema="memlens.sharing/2"):
    """What processes use and share."""

    processes = table(ProcessShare)
    pairs = table(PairShare)
    mappings = table(MappingShare)
    total = section(SharingTotal)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed or hidden, and no page moved."""
        is_hidden = self.total is not None and self.total.is_hidden
        has_moved = bool(self.processes.column("moved_pages").any())
        return super().is_all_known and not is_hidden and not has_moved


@dataclass(frozen=True, slots=True)
class ShareCounts:
    """Sums by mapping, ``(n,)`` each; ``pss`` float64, the others int64."""

    rss: NDArray[np.int64]
    pss: NDArray[np.float64]
    uss: NDArray[np.int64]
    shared: NDArray[np.int64]
    copied: NDArray[np.int64]
    new_private: NDArray[np.int64]
    new_objects: NDArray[np.int64]

    @classmethod
    def zeros(cls, mappings: int) -> "ShareCounts":
        """Return sums of nothing."""
        zeros = [np.zeros(mappings, np.int64) for _ in range(6)]
        return cls(zeros[0], np.zeros(mappings), *zeros[1:])

    def add(self, place: NDArray[np.int64], times: NDArray[np.uint32]) -> None:
        """Add pages: the mapping of each, and how often it is mapped."""
        many = len(self.rss)
        self.rss[:] += np.bincount(place, minlength=many)
        self.pss[:] += np.bincount(place, weights=1.0 / times, minlength=many)
        self.uss[:] += np.bincount(place[times == 1], minlength=many)

    def add_fork(
        self,
        place: NDArray[np.int64],
        is_shared: NDArray[np.bool_],
        has_own: NDArray[np.bool_],
        is_file: NDArray[np.bool_],
    ) -> None:
        """
        Add pages.

        :param place: the mapping of each.
        :param is_shared: whether the parent maps the same frame.
        :param has_own: whether it has another there.
        :param is_file: whether the page is of a file or of shared memory.
        """
        many = len(self.rss)
        self.shared[:] += np.bincount(place[is_shared], minlength=many)
        self.copied[:] += np.bincount(place[has_own], minlength=many)
        is_new = ~is_shared & ~has_own
        self.new_private[:] += np.bincount(place[is_new & ~is_file], minlength=many)
        self.new_objects[:] += np.bincount(place[is_new & is_file], minlength=many)


@record("ps.processes", help="What one process uses.")
class ProcessMemory:
    """One process."""

    pid: int = column("PID", key=True, help="as /proc has it")
    user: str = column("user", rank=2, help="name of its effective user, the number if none")
    uid: int = column("uid", rank=4, help="its effective user")
    rss_pages: int = column(
        "RSS",
        unit="pages",
        metric="gauge",
        hue="ram",
        help="pages that its page table maps, as the kernel counts them",
    )
    pss_pages: float = column("PSS", unit="pages", metric="gauge", hue="ram", help=_PSS)
    uss_pages: int = column(
        "USS", unit="pages", metric="gauge", hue="ram", help="pages that nobody else maps"
    )
    swap_entries_pages: int = column(
        "swap", unit="pages", metric="gauge", hue="swap", help=_ENTRIES
    )
    swap_share_bytes: int | None = column(
        "swap\nshare",
        unit="bytes",
        metric="gauge",
        hue="swap",
        help=f"{_SHARE}; null if processes that were not looked at may have these, too",
    )
    freed_on_exit_pages: int | None = column(
        "freed\non exit",
        unit="pages",
        metric="gauge",
        help="free once it has ended: private pages mapped by it alone, and those of "
        "shared-memory objects that go with it, not those of files; 0 of what it maps if "
        "another process runs in the same memory; null if frames are hidden, or not known",
    )
    shared_memory_pages: int = column(
        "shared\nmemory",
        unit="pages",
        metric="gauge",
        hue="shared",
        rank=1,
        help="pages of shared-memory objects that it maps now",
    )
    cgroup: str = column("cgroup", rank=3, help="of its memory, as /proc/PID/cgroup has it")
    name: str = column("name", unit="name", help="its comm, raw")


@record(
    "ps.groups", help="Processes of one name, user or cgroup; a page of several counts once."
)
class ProcessGroup:
    """Processes of the same name, user or cgroup; a page that many map counts once."""

    by: str = column("by", key=True, help="the column of its processes that is ``key``")
    processes: int = column("processes", metric="gauge", help="how many these are")
    distinct_rss_pages: int | None = column(
        "distinct\nRSS",
        unit="pages",
        metric="gauge",
        hue="ram",
        help="number of distinct page frames; null if they are hidden",
    )
    pss_pages: float = column(
        "PSS",
        unit="pages",
        metric="gauge",
        hue="ram",
        help="sum of its processes; one memory of several counts once",
    )
    uss_pages: int = column(
        "USS", unit="pages", metric="gauge", hue="ram", help="sum of its processes, the same"
    )
    swap_slots_pages: int | None = column(
        "swap",
        unit="pages",
        metric="gauge",
        hue="swap",
        help="distinct private slots; null if they are hidden",
    )
    swap_share_bytes: int | None = column(
        "swap\nshare",
        unit="bytes",
        metric="gauge",
        hue="swap",
        help="sum of its processes, the same; null if any is not known",
    )
    key: str = column("group", unit="name", key=True, help="the name, user or cgroup, raw")


class ProcessList(Report, schema="memlens.ps/2"):
    """Processes, and their groups if they were asked for, those with the most PSS first."""

    processes = table(ProcessMemory)
    groups = table(ProcessGroup)
