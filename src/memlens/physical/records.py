"""Records of ``memlens flags``, ``huge``, ``cgroup`` and ``files``."""

from memlens.record import column, record
from memlens.report import Report, section, table

# Codes of kinds, from 1; 0 is no page of the cgroup.
KINDS = ("anonymous", "shmem", "file", "hugetlb", "kernel")

# What becomes of a page of a kind: mapped by any process, only cached, kept twice, or given
# back as part of a huge page that is not split yet.
STATES = ("present", "cached", "swap_cached", "unmapped")


@record("cgroup.kinds", help="Charged pages of one kind and state.")
class KindPages:
    """
    Charged pages of one kind and state.

    ``present``: a page table maps it; ``cached``: in the page cache and mapped by none;
    ``swap_cached``: it has a slot on swap, too; ``unmapped``: private memory that nobody maps,
    as the rest of a huge page of which a part was given back.
    """

    kind: str = column("kind", key=True, help="anonymous, shmem, file, hugetlb or kernel")
    state: str = column("state", key=True, help="present, cached, swap_cached or unmapped")
    pages: int = column("size", unit="pages", metric="gauge", help="frames in RAM")
    dirty_pages: int = column(
        "dirty", unit="pages", rank=1, help="of these, newer than what is on disk"
    )


@record("cgroup.files", help="Charged pages of one file.")
class FileCharge:
    """Charged pages of one file; each page is in one row only, of a file or of a process."""

    pages: int = column("size", unit="pages", metric="gauge", help="frames in RAM")
    mapped_pages: int = column("mapped", unit="pages", help="of these, mapped by a process")
    path: str = column("file", unit="name", key=True, help="raw")


@record("cgroup.processes", help="Charged private pages that a process maps.")
class ProcessCharge:
    """Charged pages of no file that a process maps, the first of several."""

    pages: int = column("size", unit="pages", metric="gauge", help="in no row before")
    mapped_pages: int = column(
        "mapped", unit="pages", help="all that it maps of what is charged"
    )
    pid: int = column("PID", key=True, help="as /proc has it")
    name: str = column("process (private memory)", unit="name", help="comm, raw")
    cgroup: str = column("cgroup", rank=1, help="of the process")


@record("cgroup.elsewhere", help="Pages charged to one cgroup, mapped by processes of another.")
class ElsewherePages:
    """Pages that are charged in one cgroup and mapped by processes of another."""

    pages: int = column("size", unit="pages", metric="gauge", help="distinct frames")
    cgroup: str = column("cgroup", unit="name", key=True, help="the other one")


@record("cgroup.stat", help="A figure of memory.stat beside what was found.")
class StatLine:
    """A figure of memory.stat beside what was found."""

    name: str = column("memory.stat", key=True, help="as memory.stat has it")
    stat_pages: int = column("says", unit="pages", help="what memory.stat says")
    found_pages: int = column("found", unit="pages", help="what the frames say")
    difference_pages: int = column(
        "difference", unit="pages", help="what memory.stat says more than was found"
    )


@record("cgroup.total", help="A cgroup with those below it.")
class CgroupTotal:
    """A cgroup with those below it."""

    path: str = column("cgroup", unit="name", key=True, help="as /proc/PID/cgroup has it")
    version: int = column("version", help="of the hierarchy, 1 or 2")
    cgroups: int = column("cgroups", help="how many these are")
    charged_pages: int = column("charged", unit="pages", metric="gauge", help="frames in RAM")
    unowned_pages: int = column(
        "unowned", unit="pages", help="no process maps them, and no file was found for them"
    )
    only_elsewhere_pages: int = column(
        "elsewhere", unit="pages", help="mapped by processes of other cgroups alone"
    )
    moved_pages: int = column(
        "moved", unit="pages", help="changed hands while they were read; in no other number"
    )


class CgroupPages(Report, schema="memlens.cgroup/2"):
    """What a cgroup, with those below it, is charged."""

    files = table(FileCharge)
    processes = table(ProcessCharge)
    kinds = table(KindPages)
    used_elsewhere = table(ElsewherePages)
    charged_elsewhere = table(ElsewherePages)
    stat = table(StatLine)
    total = section(CgroupTotal)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, and nothing changed hands."""
        return super().is_all_known and not (self.total and self.total.moved_pages)


@record("cgroup.cgroups", help="A cgroup of the overview, without those below it.")
class CgroupRow:
    """One cgroup of the overview, without those below it."""

    charged_pages: int = column("charged", unit="pages", metric="gauge", help="frames in RAM")
    anonymous_pages: int = column(
        "anon", unit="pages", metric="gauge", rank=1, help="private memory"
    )
    shmem_pages: int = column(
        "shmem", unit="pages", metric="gauge", rank=1, help="shared memory"
    )
    file_pages: int = column(
        "file", unit="pages", metric="gauge", rank=1, help="page cache of files"
    )
    hugetlb_pages: int = column(
        "hugetlb", unit="pages", metric="gauge", rank=1, help="of hugetlbfs"
    )
    kernel_pages: int = column(
        "kernel", unit="pages", metric="gauge", rank=1, help="page tables, stacks and others"
    )
    inode: int = column("inode", key=True, rank=2, help="what the kernel charges a page to")
    path: str | None = column(
        "cgroup", unit="name", help="not known if it is in no directory that this reader sees"
    )


class CgroupList(Report, schema="memlens.cgroups/2"):
    """Every cgroup that is charged for a frame in RAM, most pages first."""

    cgroups = table(CgroupRow)


@record("files.files", help="What of a file is in the page cache.")
class FileCache:
    """
    What of one file is in the page cache; what is not known is None, and ``reason`` says why.

    Evicted pages are no more in the cache, but the kernel remembers them; of shared memory
    they are on swap.
    """

    cached_pages: int | None = column(
        "cached", unit="pages", metric="gauge", hue="cached", help="in the page cache"
    )
    size_bytes: int | None = column("size", unit="bytes", help="of the file")
    mapped_pages: int | None = column(
        "mapped",
        unit="pages",
        metric="gauge",
        rank=1,
        help="of the cached ones, those in a page table that this reader sees, each once",
    )
    dirty_pages: int | None = column(
        "dirty", unit="pages", metric="gauge", rank=2, help="newer than what is on disk"
    )
    writeback_pages: int | None = column(
        "wback", unit="pages", metric="gauge", rank=3, help="being written to disk"
    )
    evicted_pages: int | None = column(
        "evicted",
        unit="pages",
        metric="gauge",
        rank=2,
        help="not cached any more, but remembered; of shared memory: on swap",
    )
    recently_evicted_pages: int | None = column(
        "lately", unit="pages", rank=4, help="evicted so lately that memory seems short"
    )
    kind: str = column(
        "kind", help="file, shmem, ramfs, hugetlb, overlay, btrfs; empty if not opened"
    )
    reason: str = column("reason", help="why figures are not known")
    device: int | None = column("device", key=True, help="st_dev; not known if not opened")
    inode: int | None = column("inode", key=True, help="st_ino as a bit pattern")
    path: str = column("file", unit="name", key=True, help="as it was reached, raw")


@record("files.strip", help="A part of a file, one of equal ones.", compact=True)
class StripCell:
    """A part of a file, one of equal ones, in order; of the files that text shows."""

    device: int = column("device", key=True, help="of the file")
    inode: int = column("inode", key=True, help="of the file")
    cell: int = column("cell", key=True, help="number of the part, from 0")
    pages: int = column("size", unit="pages", help="in this part")
    cached_pages: int = column("cached", unit="pages", help="of these, in the page cache")
    evicted_pages: int | None = column("evicted", unit="pages", help="of these, remembered")


@record("files.total", help="Sums over all files that were looked at.")
class FileTotal:
    """Sums over all files that were looked at; None if no file's figure is known."""

    files: int = column("files", help="each once, however many names it has")
    unknown_files: int = column("unknown", help="of which it is not known what is cached")
    other_names: int = column("other names", help="of files that count already")
    named_paths: int = column("named", help="files and directories that were asked for")
    denied_processes: int = column("denied", help="whose files this reader may not see")
    size_bytes: int = column("size", unit="bytes", help="of the files")
    pages: int = column("pages", unit="pages", help="that the files have, cached or not")
    cached_pages: int | None = column(
        "cached", unit="pages", metric="gauge", help="in the page cache"
    )
    mapped_pages: int | None = column(
        "mapped", unit="pages", metric="gauge", help="in page tables of processes"
    )
    dirty_pages: int | None = column(
        "dirty", unit="pages", metric="gauge", help="newer than the disk"
    )
    writeback_pages: int | None = column(
        "wback", unit="pages", metric="gauge", help="being written"
    )
    evicted_pages: int | None = column(
        "evicted", unit="pages", metric="gauge", help="were in the page cache and left traces"
    )
    recently_evicted_pages: int | None = column(
        "lately", unit="pages", help="evicted not long ago"
    )


class FileReport(Report, schema="memlens.files/2"):
    """
    What of files is in the page cache, most pages first.

    The sum ``page_cache``, if it was asked for, holds it against /proc/meminfo.
    """

    files = table(FileCache)
    strips = table(StripCell)
    total = section(FileTotal)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, and something is known of every file."""
        return super().is_all_known and not (self.total and self.total.unknown_files)


@record("flags.combinations", help="Pages that have the same flags.")
class FlagCombination:
    """Pages that have the same flags."""

    pages: int = column("size", unit="pages", metric="gauge", help="with just these flags")
    word: int = column("word", unit="address", key=True, help="a bit for each flag")
    flags: str = column("flags", unit="name", help="their names, as page-types has them")


@record("flags.ranges", help="Consecutive pages that are alike.", compact=True)
class FlagRange:
    """Consecutive pages that are alike, in address and in frame."""

    address: int | None = column(
        "address",
        unit="address",
        key=True,
        absent="-",
        help="in a process, or offset in a file, in bytes; none where frames are listed",
    )
    pages: int = column("pages", help="how many these are")
    pfn: int | None = column(
        "frame", unit="address", key=True, help="the first frame; of swapped pages the slot"
    )
    map_count: int | None = column("maps", help="page tables that map each")
    word: int = column("word", unit="address", help="a bit for each flag")
    cgroup: str | None = column(
        "cgroup", help="that is charged, @INODE if it has no path here", absent=""
    )
    flags: str = column("flags", unit="name", help="their names, as page-types has them")


@record("flags.nodes", help="Pages on one NUMA node.")
class NodePages:
    """Pages on one NUMA node, whatever their flags."""

    node: int = column("node", key=True, help="its number")
    pages: int = column("size", unit="pages", metric="gauge", help="in its memory")


@record("flags.total", help="All pages that were looked at.")
class FlagTotal:
    """All pages that were looked at; but for ``total_pages`` whatever their flags."""

    subject: str = column("subject", key=True, help="whose pages")
    total_pages: int = column("total", unit="pages", help="that have the flags asked for")
    frames: int | None = column("frames", help="distinct page frames, if told apart")
    swapped_pages: int = column("swapped", unit="pages", help="no frame, only the flag swap")
    marker_pages: int = column(
        "markers", unit="pages", help="entries like swap that are none: guards, poison, moving"
    )
    moved_pages: int = column(
        "moved", unit="pages", help="changed at every look; in no other number"
    )
    hidden_pages: int = column(
        "hidden", unit="pages", help="whose flags or slots this reader may not see"
    )


class FlagReport(Report, schema="memlens.flags/2"):
    """Pages by what kpageflags, and for processes pagemap, say of them: counted, or listed."""

    combinations = table(FlagCombination)
    ranges = table(FlagRange)
    nodes = table(NodePages)
    total = section(FlagTotal)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, nothing moved, and no flags are hidden."""
        total = self.total
        is_open = total is not None and (total.moved_pages or total.hidden_pages)
        return super().is_all_known and not is_open


@record("huge.processes", help="Huge, merged and zero pages of a process.")
class HugeProcess:
    """Huge, merged and zero pages of a process; what is hidden from this reader is None."""

    pid: int = column("PID", key=True, help="as /proc has it")
    thp_pages: int | None = column(
        "THP", unit="pages", metric="gauge", hue="ram", help="in transparent huge pages"
    )
    hugetlb_pages: int = column(
        "hugetlb", unit="pages", metric="gauge", help="in hugetlb pages of any size"
    )
    anonymous_pages: int = column(
        "anon", unit="pages", metric="gauge", help="of Rss, huge or not"
    )
    file_pages: int = column("file", unit="pages", metric="gauge", help="the others of Rss")
    ksm_pages: int | None = column(
        "merged", unit="pages", metric="gauge", rank=1, help="mapped, that KSM has merged"
    )
    zero_pages: int = column(
        "zero", unit="pages", rank=1, help="that map the zero page of one base page"
    )
    huge_zero_pages: int = column(
        "huge zero", unit="pages", rank=1, help="base pages that map the huge zero page"
    )
    moved_pages: int = column(
        "moved", unit="pages", rank=1, help="changed at every look; in no other number"
    )
    ksm_profit_bytes: int | None = column(
        "profit",
        unit="bytes",
        rank=2,
        help="what KSM saves less what it costs, says the kernel",
    )
    name: str = column("process", unit="name", help="comm, raw")


@record("huge.mappings", help="Huge, merged and zero pages of a mapping.", compact=True)
class HugeMapping:
    """Huge, merged and zero pages of a mapping that has any."""

    pid: int = column("PID", key=True, help="as /proc has it")
    start: int = column("start", unit="address", key=True, help="its first address")
    stop: int = column("stop", unit="address", help="the first address after it")
    permissions: str = column("permissions", help="as maps gives them")
    thp_pages: int | None = column(
        "THP", unit="pages", hue="ram", help="in transparent huge pages"
    )
    hugetlb_pages: int = column("hugetlb", unit="pages", help="of hugetlbfs")
    anonymous_pages: int = column("anon", unit="pages", help="of private memory")
    file_pages: int = column("file", unit="pages", help="of files and shared memory")
    ksm_pages: int | None = column(
        "merged", unit="pages", rank=1, help="merged with others of the same content"
    )
    zero_pages: int = column("zero", unit="pages", rank=1, help="the page of zeroes")
    huge_zero_pages: int = column(
        "huge zero", unit="pages", rank=1, help="the huge page of zeroes"
    )
    moved_pages: int = column(
        "moved",
        unit="pages",
        rank=1,
        help="changed hands while they were read; in no other number",
    )
    path: str = column("mapping", unit="name", help="as maps gives it")


@record("huge.counters", help="A counter of the kernel's thpmaps.", compact=True)
class HugeCounter:
    """
    A counter of the kernel's thpmaps, or pages of hugetlb or of a NUMA node.

    Of one mapping, of a process (no ``start``), or of all (no ``pid``); those that are 0 are
    only in the sum of all.
    """

    pid: int | None = column("PID", key=True, help="none for the sum of all")
    start: int | None = column(
        "mapping", unit="address", key=True, help="none for the sum of a process"
    )
    kind: str = column("kind", help="what it is a share of: anon, file; else hugetlb, node")
    name: str = column("counter", key=True, help="as thpmaps has it")
    pages: int = column("size", unit="pages", metric="gauge", help="base pages of it")


@record("huge.total", help="The processes together.")
class HugeTotal:
    """The processes together: a page that two of them map counts twice."""

    processes: int = column("processes", help="how many")
    thp_pages: int | None = column("THP", unit="pages", help="in transparent huge pages")
    hugetlb_pages: int = column("hugetlb", unit="pages", help="of hugetlbfs")
    anonymous_pages: int = column("anon", unit="pages", help="of private memory")
    file_pages: int = column("file", unit="pages", help="of files and shared memory")
    ksm_pages: int | None = column(
        "merged", unit="pages", help="merged with others of the same content"
    )
    ksm_frames: int | None = column("frames", help="distinct ones behind the merged pages")
    ksm_saved_pages: int | None = column("saved", unit="pages", help="by merging, here")
    zero_pages: int = column("zero", unit="pages", help="the page of zeroes")
    huge_zero_pages: int = column("huge zero", unit="pages", help="the huge page of zeroes")
    moved_pages: int = column(
        "moved", unit="pages", help="changed hands while they were read; in no other number"
    )


class HugeReport(Report, schema="memlens.huge/2"):
    """How huge pages are mapped in processes, under the names of the kernel's thpmaps."""

    processes = table(HugeProcess)
    mappings = table(HugeMapping)
    counters = table(HugeCounter)
    total = section(HugeTotal)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, nothing moved, and nothing is hidden."""
        total = self.total
        is_open = total is not None and (total.moved_pages or total.thp_pages is None)
        return super().is_all_known and not is_open
