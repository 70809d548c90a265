"""One look at one page, with the calls that ``map_process`` makes, each written down."""

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.maps import Mapping
from memlens.kernel.process import ProcessDir
from memlens.objects.backing import Backing
from memlens.objects.opener import Opener
from memlens.pages.bits import PM_PRESENT
from memlens.pages.classes import PageClass, Reason
from memlens.residency.judge import Judge
from memlens.residency.places import WalkedPage, is_private_copy, walk_page
from memlens.residency.verdicts import Verdicts
from memlens.scan.machine import Machine, Stopped
from memlens.scan.pagetable import PageTable

# Looks at a page that changes under the reader before the last is taken.
_TRIES = 4

# Totals of the whole mapping decide about these, as they do in map_process.
_BY_TOTALS = frozenset(
    {
        Reason.HIDDEN,
        Reason.MAYBE_ZERO,
        Reason.CACHED_OR_SWAP_CACHED,
        Reason.OVERLAY_SWAP,
    }
)

# What an object was asked about one page, and what it answered, while it was asked.
#
# The verdict of a page and the explanation of it come from the same calls: these classes
# stand where ``Opener`` and ``Backing`` stand and write down each answer.


Answer = tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class Call:
    """
    One call and its answer.

    :param name: ``open``, ``size``, ``blocks``, ``seek``, ``cachestat`` or ``mincore``.
    :param first: first page of the object that it was about.
    :param pages: how many.
    :param answer: numbers whose meaning depends on the call, or the kernel's refusal.
    """

    name: str
    first: int
    pages: int
    answer: Answer


@dataclass(slots=True)
class Trace:
    """
    The calls of one look, in order; a call that repeats itself is kept once.

    :param calls: the calls.
    :param repeats: how often each was made.
    """

    calls: list[Call] = field(default_factory=list)
    repeats: dict[Call, int] = field(default_factory=dict)

    def add(self, name: str, first: int, pages: int, answer: Answer) -> None:
        """Write a call down."""
        call = Call(name, first, pages, answer)
        if call not in self.repeats:
            self.calls.append(call)
        self.repeats[call] = self.repeats.get(call, 0) + 1

    def of_page(self, page: int) -> list[Call]:
        """
        Return the calls about one page of the object, and those about the whole of it.

        A refusal is about the whole, whichever page was tried.
        """
        return [
            call
            for call in self.calls
            if call.name in ("open", "size", "blocks")
            or isinstance(call.answer, str)
            or call.first <= page < call.first + call.pages
        ]


@dataclass(slots=True)
class PageLook:
    """
    One look at a page, its mapping and its object.

    :param process: whose page it is.
    :param table: its page table.
    :param address: any address in the page.
    :param machine: says which interfaces may be used.
    :param tries: which look this is, from 1.
    :param trace: what the object answered.
    :param mapping: the line of maps.
    :param word: the pagemap word before the object was asked, None beyond the table.
    :param word_after: the same afterwards.
    :param categories: what PAGEMAP_SCAN gave, None if it was not asked.
    :param verdicts: of the page alone.
    :param judge: judged it, and knows the totals of its mapping.
    :param value: its ``PageClass``, or the ``Reason`` why there is none.
    :param is_by_totals: whether totals of the whole mapping were asked for it.
    :param swap_in_mapping: pages of the mapping on swap, where only that is known.
    :param walked: what the object's page cache holds, None if that is not known.
    :param is_steady: whether nothing changed from the first read to the last.
    :param is_contradicted: whether the walk says otherwise than the verdict, and neither
        these nor anything else changed from the first look to this one.
    """

    process: ProcessDir
    table: PageTable
    address: int
    machine: Machine
    tries: int = 1
    trace: Trace = field(default_factory=Trace)
    mapping: Mapping = field(init=False)
    word: int | None = None
    word_after: int | None = None
    categories: int | None = None
    verdicts: Verdicts = field(init=False)
    judge: Judge = field(init=False)
    value: int = 0
    is_by_totals: bool = False
    swap_in_mapping: int | None = None
    walked: WalkedPage | None = None
    is_steady: bool = False
    is_contradicted: bool = False

    @property
    def size(self) -> int:
        """Return the size of a page in bytes."""
        return self.table.size

    @property
    def page(self) -> int:
        """Return the number of the page from the start of its mapping."""
        return (self.address - self.mapping.start) // self.size

    @property
    def object_page(self) -> int:
        """Return the number of the page in its object: never the address."""
        return self.mapping.offset_bytes // self.size + self.page

    @property
    def is_anonymous(self) -> bool:
        """Return whether no object backs the page."""
        return self.verdicts.facts.kind == "anonymous"

    def run(self) -> None:
        """Ask everything, in the order of ``map_process``."""
        self.mapping = _find_mapping(self.process, self.address)
        self.categories = self.table.categories(self.address // self.size)
        self.word = self.table.word(self.address // self.size)
        self._judge()
        self.walked = self._walk()
        self.word_after = self.table.word(self.address // self.size)
        is_same = self.mapping in self.process.read_maps()
        is_fitting = self.walked is None or self.walked.fits(self.value)
        is_same = is_same and self.word == self.word_after
        is_same = is_same and self._fits_word()
        self.is_steady = is_same and is_fitting
        self.is_contradicted = is_same and not is_fitting

    def compare(self, before: "PageLook") -> None:
        """Take back that the evidence contradicts itself if the look before saw otherwise."""
        is_again = before.is_contradicted and self._seen() == before._seen()
        self.is_contradicted = self.is_contradicted and is_again

    def _seen(self) -> tuple[object, ...]:
        # Flags of a folio come and go while it stays where it is.
        walked = self.walked
        place = None if walked is None else (walked.holds, walked.area, walked.slot)
        return self.mapping, self.word, self.value, place

    def _fits_word(self) -> bool:
        """Return whether a page was not mapped or taken away during the look."""
        if self.word is None or self.value >= PageClass.UNKNOWN:
            return True
        is_mapped = self.value in (PageClass.PRESENT, PageClass.ZERO)
        return is_mapped == bool(self.word & int(PM_PRESENT))

    def _judge(self) -> None:
        # The page itself is looked at whatever the budget.
        alone = PageTable(self.table.pagemap, self.machine.unfollowed())
        self.verdicts = self._read(self.page, self.page + 1, self.trace, alone)
        self.value = _value_at(self.verdicts, self.page)
        pages = (self.mapping.stop - self.mapping.start) // self.size
        if self.value in _BY_TOTALS:
            try:
                whole = self._read(0, pages, Trace(), self.table)
            except Stopped:
                return
            self.value = _value_at(whole, self.page)
            self.is_by_totals = True
        if self.value in (Reason.NOT_OPENED, Reason.NOT_HONEST, Reason.HIDDEN):
            self.swap_in_mapping = self.judge.settler.pages(self.mapping, "Swap")

    def _read(self, first: int, stop: int, trace: Trace, table: PageTable) -> Verdicts:
        opener = TracedOpener(self.process)
        opener.trace = trace
        judge = Judge(table, opener)
        try:
            found = judge.read(self.mapping, first, stop)
            verdicts = Verdicts(found.facts, judge.settle(self.mapping, found), found.refusal)
        finally:
            judge.close()
        self.judge = judge
        return verdicts

    def _walk(self) -> WalkedPage | None:
        """Return what the object's page cache holds, if that is this page."""
        is_of_object = self.verdicts.facts.kind not in ("anonymous", "special", "device")
        if not is_of_object or is_private_copy(self.word):
            return None
        return walk_page(
            self.judge.walking,
            self.process.tid,
            self.mapping,
            self.object_page,
            is_of_layer=self.verdicts.facts.kind == "overlay",
        )


def look_until_steady(
    process: ProcessDir, table: PageTable, address: int, machine: Machine
) -> PageLook:
    """
    Return a look at a page that did not change meanwhile, or the last of a few.

    :param machine: once the scan is over, what there is is taken.
    :raises MemlensError: if the address is not mapped.
    """
    look = PageLook(process, table, address, machine)
    look.run()
    while not look.is_steady and look.tries <= _TRIES:
        if machine.is_over():
            break
        before, look = look, PageLook(process, table, address, machine, look.tries + 1)
        look.run()
        look.compare(before)
    return look


def _find_mapping(process: ProcessDir, address: int) -> Mapping:
    mappings = process.read_maps()
    if not mappings:
        raise process.gone_error()
    for mapping in mappings:
        if mapping.start <= address < mapping.stop:
            return mapping
    below = [mapping for mapping in mappings if mapping.stop <= address]
    above = [mapping for mapping in mappings if mapping.start > address]
    neighbours = [("below", row) for row in below[-1:]] + [("above", row) for row in above[:1]]
    around = [f"{side} it {row.name} {row.path}".rstrip() for side, row in neighbours]
    raise MemlensError(
        f"address {address:#x} is not mapped in process {process.pid}; " + ", ".join(around),
        path=f"{process.path}/maps",
    )


def _value_at(verdicts: Verdicts, page: int) -> int:
    return next(value for first, pages, value in verdicts.runs if first <= page < first + pages)


class TracedOpener(Opener):
    """
    An ``Opener`` whose objects write down what they answer.

    :param trace: where to.
    """

    trace: Trace

    def open(self, mapping: Mapping) -> Backing | str:
        """Open the object of a mapping, as ``Opener`` does."""
        found = super().open(mapping)
        if isinstance(found, str):
            self.trace.add("open", 0, 0, found)
            return found
        self.trace.add("open", 0, 0, (int(found.is_quiet()),))
        return TracedBacking(
            found.fd,
            found.kind,
            found.host,
            found.is_writable,
            found.path,
            self.trace,
        )


@dataclass(slots=True)
class TracedBacking(Backing):
    """
    A ``Backing`` that writes down what it answers.

    :param trace: where to.
    """

    # A class with slots is made anew by the decorator, so that super() does not find it.
    trace: Trace = field(default_factory=Trace)

    def size_pages(self) -> int:
        """Return the pages up to the end of the object."""
        pages = Backing.size_pages(self)
        self.trace.add("size", 0, 0, (pages, os.fstat(self.fd).st_size))
        return pages

    def allocated_pages(self) -> int:
        """Return the pages that the object owns."""
        pages = Backing.allocated_pages(self)
        self.trace.add("blocks", 0, 0, (pages,))
        return pages

    def data_extents(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return where SEEK_DATA says that there is data."""
        extents = Backing.data_extents(self, first, stop)
        self.trace.add("seek", first, stop - first, tuple(extents.ravel().tolist()))
        return extents

    def cachestat(self, first: int, pages: int) -> tuple[int, int]:
        """Return how many pages are in the page cache, and how many were evicted."""
        try:
            found = Backing.cachestat(self, first, pages)
        except OSError as error:
            self.trace.add("cachestat", first, pages, os.strerror(error.errno or 0))
            raise
        # Before the size is known, it was only tried whether this reader may ask.
        if any(call.name == "size" for call in self.trace.calls):
            self.trace.add("cachestat", first, pages, found)
        return found

    def mincore(self, first: int, pages: int) -> NDArray[np.bool_]:
        """Return whether each page is in RAM."""
        resident = Backing.mincore(self, first, pages)
        self.trace.add("mincore", first, pages, tuple(resident.astype(int).tolist()))
        return resident
