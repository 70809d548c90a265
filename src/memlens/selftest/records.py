"""Records of ``memlens doctor`` and ``memlens demo``."""

from memlens.record import column, record
from memlens.report import Report, section, table


@record("doctor.interfaces", help="One interface of the kernel, and whether it is of use here.")
class Probe:
    """One interface of the kernel, and whether it is of use to this reader."""

    name: str = column(
        "interface", key=True, help="as MEMLENS_DISABLE names it, if it can be switched off"
    )
    is_available: bool = column("there", help="whether the round trip gave what it must")
    proof: str = column("proof", help="what the round trip showed, empty if it failed")
    reason: str = column("reason", help="why it is missing, empty if it is not")
    needs: str = column(
        "needs", help="the least privilege or kernel that would give it, empty if it is there"
    )
    group: str = column("group", help="own, other, frames, tracking or swap")
    title: str = column("what it is", help="for a person")
    is_switched_off: bool = column(
        "off", default=False, help="missing only because MEMLENS_DISABLE names it"
    )


@record("doctor.outlooks", help="What can be said about one kind of process.")
class Outlook:
    """What can be said about one kind of process."""

    scope: str = column("scope", key=True, help="own, other or frames")
    title: str = column("of what", help="for a person")
    level: str = column("level", help="everything, part or nothing")


@record("doctor.gaps", help="Something that cannot be said.")
class Gap:
    """Something that cannot be said."""

    scope: str = column("scope", key=True, help="of the outlook")
    text: str = column("left open", key=True, help='the end of "leaves open ..."')
    needs: str = column(
        "needs", help="the least that would be enough, empty if it was switched off on purpose"
    )


@record("doctor.capabilities", help="One effective capability of this reader.")
class Capability:
    """One effective capability of this reader, in the kernel's order."""

    name: str = column("capability", key=True, help="as capabilities(7) has it")


@record("doctor.areas", help="One swap area.")
class Area:
    """One swap area."""

    path: str = column("path", key=True, help="the device or file")
    kind: str = column("kind", help="partition, file or zram")
    size_pages: int = column("size", unit="pages", help="what it can hold")
    used_pages: int = column("used", unit="pages", help="what it holds, or keeps for a page")
    priority: int = column("priority", help="the higher, the sooner it is used")
    device: str = column("device", help="name of a zram device in /sys/block, else empty")
    first_number: int = column("number", help="the lowest that page-table entries can have")
    last_number: int = column("to", help="the highest, after areas before it were switched off")


@record("doctor.zram", help="One zram device that swap lies on.")
class Zram:
    """One zram device that swap lies on."""

    device: str = column("device", key=True, help="name in /sys/block")
    stored_bytes: int = column("stored", unit="bytes", help="pages in it, not compressed")
    compressed_bytes: int = column("compressed", unit="bytes", help="the same, compressed")
    used_bytes: int = column("RAM", unit="bytes", help="what it takes with its overhead")
    limit_bytes: int = column("limit", unit="bytes", help="what it may take, 0 for no limit")
    peak_bytes: int = column("peak", unit="bytes", help="the most that it has taken")
    same_pages: int = column(
        "same", unit="pages", help="filled with one word, kept without RAM"
    )
    huge_pages: int = column("huge", unit="pages", help="kept whole: they do not compress")


@record("doctor.zswap", help="The compressed cache in RAM before swap.")
class Zswap:
    """The compressed cache in RAM before swap."""

    is_enabled: bool = column("on", help="whether pages that go to swap are taken in now")
    compressor: str = column("compressor", help="name of the algorithm")
    pool_bytes: int | None = column("RAM", unit="bytes", help="taken; not known before v5.19")
    stored_bytes: int | None = column(
        "stored", unit="bytes", help="pages in it, not compressed; not known before v5.19"
    )


@record("doctor.reader", help="The user and the privileges that everything was asked with.")
class Reader:
    """The user and the privileges that everything was asked with."""

    uid: int = column("user", help="effective user")
    is_init_user_namespace: bool | None = column(
        "first user namespace", help="whether capabilities count outside of a container too"
    )
    is_init_pid_namespace: bool | None = column(
        "first PID namespace", help="whether every process of the machine is in its /proc"
    )
    is_filtered: bool = column(
        "seccomp", help="whether a filter may refuse system calls that the kernel has"
    )
    proc: str = column("proc", default="/proc", help="root of the /proc that was asked")


class Features(Report, schema="memlens.doctor/2"):
    """What this kernel lets this reader see, at the time it was asked."""

    interfaces = table(Probe)
    outlooks = table(Outlook)
    gaps = table(Gap)
    capabilities = table(Capability)
    areas = table(Area)
    zram = table(Zram)
    reader = section(Reader)
    zswap = section(Zswap)

    @property
    def is_all_known(self) -> bool:
        """Return whether no interface is missing."""
        return super().is_all_known and not self.missing()

    def probe(self, name: str) -> Probe:
        """
        Return the probe of one interface.

        :raises KeyError: if there is none of that name.
        """
        for found in self.interfaces:
            if found.name == name:
                return found
        raise KeyError(name)

    def has(self, name: str) -> bool:
        """Return whether an interface is available; KeyError for an unknown name."""
        return self.probe(name).is_available

    def missing(self) -> tuple[Probe, ...]:
        """Return the interfaces that are not available."""
        return tuple(probe for probe in self.interfaces if not probe.is_available)


@record("demo.specimens", help="Pages that were made on purpose, and what was said of them.")
class Finding:
    """Pages that were made on purpose, and what was said of them."""

    number: int = column("number", key=True, help="in the order of the recipes")
    family: str = column("memory", help="the kind of memory")
    how: str = column("how it was made", help="what was done to the pages")
    first_page: int = column(
        "page", unit="address", help="address of the first, in pages of this size"
    )
    pages: int = column("pages", help="how many")
    misled_pages: int = column("misled", help="of which pagemap alone says something untrue")
    unknown_pages: int = column("unknown", help="that could not be known")
    wrong_pages: int = column("wrong", help="that memlens got wrong")


@record("demo.answers", help="What was said of pages of a specimen.")
class Answer:
    """What was said of pages of a specimen."""

    number: int = column("number", key=True, help="of the specimen")
    pages: int = column("pages", help="how many")
    naive: str = column(
        "pagemap says", key=True, help="pagemap alone: present, swapped or nothing"
    )
    found: str = column("memlens says", key=True, help="the class")
    is_misleading: bool = column("misleads", help="whether pagemap alone says an untruth")


@record("demo.disagreements", help="A page that is not what it was made to be.")
class Disagreement:
    """A page that is not what it was made to be."""

    number: int = column("number", key=True, help="of the specimen")
    page: int = column("page", key=True, help="its number in the specimen")
    expected: str = column("made as", help='classes that it may be in, with "or" between')
    found: str = column("memlens says", help="the class")


@record("demo.reasons", help="Why pages of a specimen could not be known.")
class Reason:
    """Why pages of a specimen could not be known."""

    number: int = column("number", key=True, help="of the specimen")
    reason: str = column("reason", key=True, unit="name", help="as memlens map gives it")


@record("demo.left_out", help="A kind of memory that could not be made or not be kept.")
class LeftOut:
    """A kind of memory that could not be made or not be kept, and why."""

    number: int = column("number", key=True, help="of the specimen")
    family: str = column("memory", help="the kind of memory")
    how: str = column("how it was made", help="what would have been done to the pages")
    reason: str = column("reason", unit="name", help="why it is missing")


@record("demo.swap", help="The swap of a demo.")
class SwapUse:
    """The swap of a demo."""

    kind: str = column("kind", help="none, zram or slow")
    paths: str = column("paths", default="", help="the devices and files, with commas between")
    is_made: bool = column("made", default=False, help="whether the demo made it")
    reason: str = column("reason", default="", help="why there is none, empty if there is")
    leftovers: str = column(
        "left", default="", help="what could not be taken away again, empty if all was"
    )


@record("demo.total", help="What a demo found, in one row.")
class DemoTotal:
    """What a demo found, in one row."""

    kinds: int = column("kinds", help="of memory that were looked at")
    pages: int = column("pages", help="of all of them")
    misled_kinds: int = column("misled kinds", help="kinds with misled pages")
    misled_pages: int = column("misled", help="of which pagemap alone says something untrue")
    unknown_pages: int = column("unknown", help="that could not be known")
    wrong_pages: int = column("wrong", help="that memlens got wrong")


class DemoResult(Report, schema="memlens.demo/2"):
    """What a demo found: memory made on purpose, and what was said of it."""

    specimens = table(Finding)
    answers = table(Answer)
    disagreements = table(Disagreement)
    reasons = table(Reason)
    left_out = table(LeftOut)
    swap = section(SwapUse)
    total = section(DemoTotal)

    @property
    def is_all_known(self) -> bool:
        """Return whether every kind of memory was made, and every page known."""
        is_known = self.total is not None and not self.total.unknown_pages
        return super().is_all_known and is_known and not len(self.left_out)

    @property
    def is_wrong(self) -> bool:
        """Return whether memlens got a page wrong, or something was left behind."""
        leftovers = self.swap.leftovers if self.swap is not None else ""
        return bool(leftovers or len(self.disagreements))
