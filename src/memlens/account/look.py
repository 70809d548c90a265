"""One look at one page, with the calls that ``map_process`` makes, each written down."""

from dataclasses import dataclass, field

from memlens.account.mapping import make_reader
from memlens.account.meanings import CATEGORIES
from memlens.account.pageplace import WalkedPage, is_private_copy, walk_page
from memlens.account.settle import Settler
from memlens.account.trace import Trace, TracedOpener
from memlens.account.verdicts import Verdicts
from memlens.account.walking import Walking
from memlens.errors import MemlensError, ProcessGone, Unsupported
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.pagemap import PAGE_IS_PFNZERO, Pagemap
from memlens.kernel.process import ProcessDir
from memlens.pages.bits import PM_PRESENT
from memlens.pages.classes import PageClass, Reason

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
_ALL_CATEGORIES = (1 << len(CATEGORIES)) - 1
_OLD_CATEGORIES = PAGE_IS_PFNZERO * 2 - 1


@dataclass(slots=True)
class PageLook:
    """
    One look at a page, its mapping and its object.

    :param process: whose page it is.
    :param pagemap: its page table.
    :param address: any address in the page.
    :param tries: which look this is, from 1.
    :param trace: what the object answered.
    :param mapping: the line of maps.
    :param word: the pagemap word before the object was asked, None beyond the table.
    :param word_after: the same afterwards.
    :param categories: what PAGEMAP_SCAN gave, None if it was not asked.
    :param verdicts: of the page alone.
    :param settler: knows the totals of its mapping.
    :param value: its ``PageClass``, or the ``Reason`` why there is none.
    :param is_by_totals: whether totals of the whole mapping were asked for it.
    :param swap_in_mapping: pages of the mapping on swap, where only that is known.
    :param walked: what the object's page cache holds, None if that is not known.
    :param is_steady: whether nothing changed from the first read to the last.
    :param is_contradicted: whether the walk says otherwise than the verdict, and neither
        these nor anything else changed from the first look to this one.
    """

    process: ProcessDir
    pagemap: Pagemap
    address: int
    tries: int = 1
    disabled: frozenset[str] = field(default_factory=features.read_disabled)
    trace: Trace = field(default_factory=Trace)
    mapping: Mapping = field(init=False)
    word: int | None = None
    word_after: int | None = None
    categories: int | None = None
    verdicts: Verdicts = field(init=False)
    settler: Settler = field(init=False)
    value: int = 0
    is_by_totals: bool = False
    swap_in_mapping: int | None = None
    walked: WalkedPage | None = None
    is_steady: bool = False
    is_contradicted: bool = False

    @property
    def size(self) -> int:
        """Return the size of a page in bytes."""
        return self.pagemap.page_size_bytes

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
        self.categories = self._scan()
        self.word = self._read_word()
        self._judge()
        self.walked = self._walk()
        self.word_after = self._read_word()
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
        self.verdicts = self._read(self.page, self.page + 1, self.trace)
        self.value = _value_at(self.verdicts, self.page)
        pages = (self.mapping.stop - self.mapping.start) // self.size
        if self.value in _BY_TOTALS:
            self.value = _value_at(self._read(0, pages, Trace()), self.page)
            self.is_by_totals = True
        if self.value in (Reason.NOT_OPENED, Reason.NOT_HONEST, Reason.HIDDEN):
            self.swap_in_mapping = self.settler.pages(self.mapping, "Swap")

    def _read(self, first: int, stop: int, trace: Trace) -> Verdicts:
        opener = TracedOpener(self.process, self.disabled, self.size)
        opener.trace = trace
        reader = make_reader(self.process, self.pagemap, self.disabled, opener=opener)
        try:
            found = reader.read(self.mapping, first, stop)
            verdicts = Verdicts(found.facts, reader.settle(self.mapping, found), found.refusal)
        finally:
            reader.close()
        self.settler = reader.settler
        return verdicts

    def _walk(self) -> WalkedPage | None:
        """Return what the object's page cache holds, if that is this page."""
        is_of_object = self.verdicts.facts.kind not in ("anonymous", "special", "device")
        if not is_of_object or is_private_copy(self.word):
            return None
        is_allowed = "cachewalk" not in self.disabled
        walking = Walking(self.process.meter, is_allowed, proc=self.process.proc)
        return walk_page(
            walking,
            self.process.tid,
            self.mapping,
            self.object_page,
            is_of_layer=self.verdicts.facts.kind == "overlay",
        )

    def _has_scan(self) -> bool:
        return "pagemap_scan" not in self.disabled and features.has_pagemap_scan()

    def _scan(self) -> int | None:
        """Return every category of the page, as far as this kernel knows them."""
        if not self._has_scan():
            return None
        number = self.address // self.size
        for wanted in (_ALL_CATEGORIES, _OLD_CATEGORIES):
            try:
                regions = list(self.pagemap.scan(number, 1, 0, wanted))
                return int(regions[0][0, 2]) if regions else 0
            except Unsupported:
                continue
            except MemlensError as error:
                if isinstance(error, ProcessGone):
                    raise
                break
        return None

    def _read_word(self) -> int | None:
        words = self.pagemap.read_words(self.address // self.size, 1)
        return int(words[0]) if len(words) else None


def look_until_steady(process: ProcessDir, pagemap: Pagemap, address: int) -> PageLook:
    """
    Return a look at a page that did not change meanwhile, or the last of a few.

    :raises MemlensError: if the address is not mapped.
    """
    look = PageLook(process, pagemap, address)
    look.run()
    while not look.is_steady and look.tries <= _TRIES:
        before, look = look, PageLook(process, pagemap, address, tries=look.tries + 1)
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
