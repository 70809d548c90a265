"""Records of ``memlens shm``."""

from memlens.record import column, record
from memlens.report import Report, table


@record("shm.objects", help="One shared-memory object.")
class SharedObject:
    """
    One shared-memory object.

    Its pages up to its end are each in one of seven classes: ``present`` is mapped by at least
    one process, ``cached`` by none that could be looked at.
    """

    object: int = column("object", key=True, help="its number in this report")
    kind: str = column("kind", help="memfd, tmpfs, sysv or anonymous")
    size_bytes: int = column("size", unit="bytes", metric="gauge", help="up to its end")
    resident_pages: int = column(
        "in RAM", unit="pages", metric="gauge", help="what of it counts in Shmem of meminfo"
    )
    present_pages: int = column(
        "present", unit="pages", metric="gauge", rank=1, hue="ram", help="in RAM and mapped"
    )
    cached_pages: int = column(
        "cached",
        unit="pages",
        metric="gauge",
        rank=1,
        hue="cached",
        help="in RAM, mapped by none that could be looked at",
    )
    swap_pages: int = column("on swap", unit="pages", metric="gauge", help="what has a slot")
    swapped_pages: int = column(
        "swapped", unit="pages", metric="gauge", rank=1, hue="swap", help="on swap only"
    )
    swap_cached_pages: int = column(
        "swap\ncached",
        unit="pages",
        metric="gauge",
        rank=1,
        hue="swap",
        help="on swap and in RAM again",
    )
    preallocated_pages: int = column(
        "pre-\nalloc", unit="pages", metric="gauge", rank=1, help="in RAM, never written"
    )
    none_pages: int = column(
        "none", unit="pages", metric="gauge", rank=5, hue="dim", help="never touched"
    )
    unknown_pages: int = column(
        "unknown", unit="pages", metric="gauge", rank=1, help="not to be told, see reason"
    )
    beyond_end_resident_pages: int = column(
        "in RAM\npast end",
        unit="pages",
        rank=4,
        help="beyond its end, as fallocate(2) or a huge page leaves them; in no class",
    )
    beyond_end_swapped_pages: int = column(
        "swapped\npast end", unit="pages", rank=4, help="the same, on swap"
    )
    holders: str | None = column(
        "holders",
        rank=2,
        help="who maps most of it, and how many more hold it; none if surely nobody does",
    )
    sole_keeper: int | None = column(
        "kept by",
        absent="",
        help="the PID with whose exit it goes; in a list of all objects, messages and loop "
        "devices are not asked whether they hold it",
    )
    may_have_more_holders: bool = column(
        "more\nholders", help="whether processes that could not be looked at may hold it"
    )
    owner: str | None = column("owner", rank=3, help="name of the user, or number")
    uid: int | None = column("uid", help="of the owner")
    age_s: float | None = column("age", unit="seconds", rank=4, help="since it was made")
    device: str = column("device", rank=7, help="major:minor in hexadecimal, as in maps")
    inode: int = column("inode", rank=6, help="bit pattern; of System V its number")
    cgroup: str | None = column(
        "cgroup", rank=8, absent="", help="what a page of it that is mapped is charged to"
    )
    marks: str = column(
        "marks",
        rank=3,
        help="deleted, no_holder, detached (System V: nobody attached it), huge, sealed, "
        "other_mount_namespace, other_ipc_namespace",
    )
    reason: str = column("reason", help="why pages are unknown")
    name: str = column(
        "name", unit="name", metric="label", help="raw: a path, memfd:NAME, sysv:ID"
    )


@record("shm.holders", help="A process that maps an object or has it open.")
class Holder:
    """A process that maps an object or has it open."""

    object: int = column("object", key=True, help="its number in objects")
    pid: int = column("PID", key=True, help="the process, as this /proc numbers it")
    mapped_pages: int = column("maps", unit="pages", help="what its mappings cover of it")
    present_pages: int | None = column(
        "present", unit="pages", help="what its page table maps now; known of one OBJECT"
    )
    is_open: bool = column("open", help="whether it has a descriptor of it")
    parts: str = column("pages", rank=1, help="half-open page ranges that it maps, the first")
    name: str = column("name", unit="name", help="comm, raw")


@record("shm.ranges", help="Consecutive pages of an object that a process maps.", compact=True)
class HeldRange:
    """Consecutive pages of an object that a process maps."""

    object: int = column("object", key=True, help="its number in objects")
    pid: int = column("PID", key=True, help="the process, as this /proc numbers it")
    first: int = column("first", key=True, help="page of the object")
    pages: int = column("pages", unit="pages", help="that the range has")


@record("shm.runs", help="Consecutive pages of an object of one class.", compact=True)
class ObjectRun:
    """Consecutive pages of an object of one class."""

    object: int = column("object", key=True, help="its number in objects")
    first: int = column("first", key=True, help="page of the object")
    pages: int = column("pages", unit="pages", help="that the run has")
    page_class: str = column("class", help="name of the class")


class Inventory(Report, schema="memlens.shm/2"):
    """
    Every shared-memory object, or one that was asked for, page by page.

    All of them have a sum, ``shmem``: what of Shmem of /proc/meminfo they explain.  ``runs``
    is there if it was asked for, and always of one object.
    """

    objects = table(SharedObject)
    holders = table(Holder)
    ranges = table(HeldRange)
    runs = table(ObjectRun)

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed, and nothing of Shmem left over."""
        left = self.sums.get("shmem", {}).get("remainder_pages")
        return super().is_all_known and not left
