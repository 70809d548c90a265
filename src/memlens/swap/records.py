"""Records of ``memlens swap``."""

from memlens.record import column, record
from memlens.report import Report, section, table
from memlens.shm.records import HeldRange, Holder

# What stands for owners of slots: the first ones have a letter, the others share the last.
SLOT_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ+"


@record("swap.processes", help="One process in the ledger.")
class ProcessSwap:
    """One process in the ledger."""

    pid: int = column("PID", key=True, help="the process, as this /proc numbers it")
    user: str = column("user", rank=2, metric="label", help="name, or number")
    uid: int = column("uid", help="of the user")
    swap_only_mine_pages: int | None = column(
        "only\nmine",
        unit="pages",
        metric="gauge",
        hue="swap",
        help="slots in its page table that no other process has; not known where slots are "
        "hidden, or where processes that were not looked at may have them",
    )
    swap_share_bytes: int | None = column(
        "share",
        unit="bytes",
        metric="gauge",
        hue="swap",
        help="slots in its page table, each divided among the processes that have it there, "
        "and its even part of each object on swap that it maps; the column adds up to private "
        "pages and objects that are mapped",
    )
    swap_entries_pages: int = column(
        "entries",
        unit="pages",
        metric="gauge",
        hue="swap",
        help="private pages on swap: each swap entry of its page table, whole; VmSwap where "
        "slots are hidden",
    )
    freed_on_exit_pages: int | None = column(
        "freed\non exit",
        unit="pages",
        metric="gauge",
        help="slots that are free once it has ended: those that no other process has, in a "
        "page table or by a page in RAM, and those of objects that go with it",
    )
    swap_cached_pages: int = column(
        "also\nin RAM",
        unit="pages",
        metric="gauge",
        rank=1,
        hue="cached",
        help="private pages in RAM that keep a slot, which it maps",
    )
    cgroup: str = column("cgroup", rank=3, metric="label", help="of its memory")
    name: str = column("name", unit="name", metric="label", help="comm, raw")


@record("swap.objects", help="One shared-memory object on swap.")
class SwappedObject:
    """One shared-memory object on swap."""

    object: int = column("object", key=True, help="its number in this report")
    kind: str = column("kind", help="memfd, tmpfs, sysv or anonymous")
    swap_pages: int = column(
        "swap", unit="pages", metric="gauge", hue="swap", help="what has a slot"
    )
    swapped_pages: int = column(
        "only\non swap", unit="pages", rank=4, help="what of these is not in RAM"
    )
    swap_cached_pages: int = column(
        "also\nin RAM", unit="pages", rank=1, hue="cached", help="what of these is in RAM again"
    )
    beyond_end_swapped_pages: int = column(
        "past\nend", unit="pages", rank=4, help="what of these is beyond its end"
    )
    size_bytes: int = column("size", unit="bytes", rank=1, help="up to its end")
    device: str = column("device", rank=4, help="major:minor in hexadecimal, as in maps")
    inode: int = column("inode", rank=4, help="bit pattern; of System V its number")
    holders: str | None = column(
        "holders", help="who maps most of it, and how many more hold it"
    )
    marks: str = column("marks", rank=2, help="as in shm")
    name: str = column(
        "name", unit="name", metric="label", help="raw: a path, memfd:NAME, sysv:ID"
    )


@record("swap.cgroups", help="One cgroup in the ledger, without those below it.")
class CgroupSwap:
    """One cgroup in the ledger, without those below it."""

    charged_pages: int | None = column(
        "charged", unit="pages", metric="gauge", hue="swap", help="as the kernel says"
    )
    swap_slots_pages: int | None = column(
        "private", unit="pages", metric="gauge", help="distinct private slots of its processes"
    )
    swap_share_bytes: int | None = column(
        "share", unit="bytes", metric="gauge", help="the sum over its processes"
    )
    path: str = column("cgroup", unit="name", key=True, help="as /proc/PID/cgroup has it")


@record("swap.areas", help="One swap area.")
class AreaSwap:
    """One swap area."""

    area: int | None = column(
        "area", help="its number in page tables, not known if the kernel leaves it open"
    )
    kind: str = column("kind", help="partition, file or zram")
    used_pages: int = column(
        "used", unit="pages", metric="gauge", hue="swap", help="slots in use"
    )
    size_pages: int = column("size", unit="pages", metric="gauge", help="slots in all")
    private_pages: int | None = column(
        "private", unit="pages", rank=1, help="distinct slots of it in page tables"
    )
    stored_bytes: int | None = column(
        "stored", unit="bytes", rank=3, absent="", help="zram: size of what it holds"
    )
    compressed_bytes: int | None = column(
        "in RAM", unit="bytes", rank=2, absent="", help="zram: RAM that this takes"
    )
    priority: int = column("prio", rank=4, help="the higher, the sooner it is used")
    path: str = column("path", unit="name", key=True, help="of the device or file, raw")


@record("swap.zswap", help="The compressed cache before swap; its pages count as swapped.")
class ZswapUse:
    """The compressed cache before swap; its pages count as swapped everywhere else."""

    is_enabled: bool = column("enabled", help="whether new pages go there")
    stored_bytes: int | None = column(
        "stored", unit="bytes", help="size of what it holds, not known if the kernel hides it"
    )
    compressed_bytes: int | None = column("in RAM", unit="bytes", help="RAM that this takes")


@record("swap.slot_owners", help="What keeps slots.")
class SlotOwner:
    """What keeps slots: a process, a shared-memory object, or pages of nobody in RAM."""

    owner: int = column("owner", key=True, help="its number in this report: most slots first")
    sign: str = column("sign", help="what stands for it in the map")
    pid: int | None = column("PID", absent="", help="of a process")
    object: int | None = column("object", absent="", help="its number in objects")
    pages: int = column(
        "slots",
        unit="pages",
        metric="gauge",
        help="its own; one that several processes have after fork is the first one's",
    )
    extents: int = column("extents", help="stretches of consecutive slots that these are in")
    slots_per_extent: float = column("slots per\nextent", help="the mean")
    also_held_pages: int = column(
        "held by\nothers too", unit="pages", rank=1, help="of these, by other processes"
    )
    kind: str = column(
        "kind",
        help="process for private pages, that of the object, or none: pages in RAM of "
        "no process that was read",
    )
    name: str = column("name", unit="name", help="of the process or object, raw")


@record("swap.slot_areas", help="The slots of one swap area.")
class SlotArea:
    """The slots of one swap area."""

    area: int = column("area", key=True, help="its number in page tables")
    slots: int = column("slots", help="they are numbered from 1 and below this")
    used_pages: int | None = column("used", unit="pages", help="as /proc/swaps says")
    named_pages: int = column("named", unit="pages", help="slots with an owner")
    path: str = column("path", unit="name", help='"" if the kernel does not say for certain')


@record("swap.slot_runs", help="Consecutive slots of one owner.", compact=True)
class SlotRun:
    """Consecutive slots of one owner; where two claim a slot, both are there."""

    area: int = column("area", key=True, help="number of the swap area")
    slot: int = column("slot", key=True, help="the first")
    pages: int = column("slots", unit="pages", help="slots in a row")
    owner: int = column("owner", key=True, help="its number in slot_owners")


@record("swap.slots_claimed_twice", help="Slots that two owners claim.")
class DoubleClaim:
    """Slots that two owners claimed, on two looks; there should be none."""

    area: int = column("area", key=True, help="number of the swap area")
    slot: int = column("slot", key=True, help="the first")
    pages: int = column("slots", unit="pages", help="slots in a row")
    owner: int = column("owner", key=True, help="its number in slot_owners")
    other_owner: int = column("other", key=True, help="number of the other owner")


@record("swap.slot_map", help="What the map of slots can tell.")
class SlotMapLimits:
    """What the map of slots can tell."""

    is_walked: bool = column("walked", help="whether slots of shared memory could be told")
    cache_reason: str = column(
        "reason", help='why slots of private pages in RAM could not be told, "" if they could'
    )


class SwapLedger(Report, schema="memlens.swap/2"):
    """
    Where swap is.

    Its sum ``swap`` is of used slots, all areas: ``private_pages`` in page tables, each once;
    ``shared_pages`` of objects, each once, ``shared_swap_cached_pages`` of them in RAM again;
    ``swap_cache_pages``: slots of private pages in RAM that no page table holds as well.
    What begins with ``slot`` is there if it was asked for.
    """

    processes = table(ProcessSwap)
    objects = table(SwappedObject)
    cgroups = table(CgroupSwap)
    areas = table(AreaSwap)
    holders = table(Holder)
    ranges = table(HeldRange)
    slot_owners = table(SlotOwner)
    slot_areas = table(SlotArea)
    slot_runs = table(SlotRun)
    slots_claimed_twice = table(DoubleClaim)
    zswap = section(ZswapUse)
    slot_map = section(SlotMapLimits)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, and nothing of what is used left over."""
        left = self.sums.get("swap", {}).get("remainder_pages")
        return super().is_all_known and not left
