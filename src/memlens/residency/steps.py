"""
One page, step by step: what was asked, what the kernel answered, what follows.

The verdict comes from the code that ``map_process`` runs, with the same calls in the
same order; the steps are what these calls answered (``onepage.Trace``).
"""

import numpy as np

from memlens.errors import MemlensError, ProcessGone
from memlens.kernel.kpage import read_kpageflags
from memlens.kernel.process import ProcessDir
from memlens.pages.bits import CATEGORIES, PM_FILE, PM_PFN, PM_PRESENT
from memlens.pages.classes import CLASSES, REASONS, PageClass, Reason, Verdict, verdict_class
from memlens.pages.decode import bit_names
from memlens.pages.flags import flag_names
from memlens.record import Table
from memlens.residency import wording
from memlens.residency.onepage import PageLook, look_until_steady
from memlens.residency.places import (
    find_holders,
    name_place,
    walked_answer,
    walked_meaning,
    word_place,
)
from memlens.residency.records import (
    PageExplanation,
    PageHolder,
    PageObject,
    PageVerdict,
    Step,
    SwapPlace,
)
from memlens.residency.tables import process_of
from memlens.residency.verdicts import object_label
from memlens.scan.machine import Machine, Progress, Stop, Stopped
from memlens.scan.pagetable import PageTable
from memlens.units import ADDRESS_LIMIT, format_size, signed

_HUGE = 1 << CATEGORIES.index("HUGE")


def explain_page(
    pid: int,
    address: int,
    *,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> PageExplanation:
    """
    Return where one page of a process is, and how that is known.

    >>> import os
    >>> explain_page(os.getpid(), id(explain_page)).verdict.page_class
    'present'

    :param pid: a live process, as ``proc`` numbers it.
    :param address: any address in the page.
    :param proc: root of the /proc to read.
    :param budget_s: seconds after which no more is asked; one look is always taken.
    :param on_progress: called with what is done, of two: the page, and who else maps it.
    :param should_stop: asked between looks; True ends the scan.
    :raises MemlensError: if the address is not mapped; and as ``map_process``.
    :raises ValueError: if the address does not fit 64 bits.

    True at some moment of the look.  A page that changes meanwhile is looked at again, a
    few times; if it never rests, a note says so.
    """
    if not 0 <= address < ADDRESS_LIMIT:
        raise ValueError(f"address beyond 64 bits: {address:#x}")
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    with ProcessDir(pid, machine) as process:
        table = PageTable.open(process, machine)
        try:
            return _explain(look_until_steady(process, table, address, machine))
        except (ProcessGone, EOFError) as error:
            raise process.gone_error() from error
        finally:
            table.close()


def _explain(look: PageLook) -> PageExplanation:
    origin = look.machine.origin()
    identity = look.process.identity(look.table.pagemap)
    holders: list[PageHolder] = []
    missed, is_complete = 0, True
    try:
        look.machine.step(1, 2)
        holders, missed = _holders(look)
    except Stopped:
        is_complete = False
    flags = _kpage_flags(look)
    row = CLASSES[verdict_class(look.value)]
    verdict = PageVerdict(
        page=look.address // look.size,
        start_page=look.mapping.start // look.size,
        stop_page=look.mapping.stop // look.size,
        permissions=look.mapping.permissions,
        page_class=row.label,
        meaning=row.meaning,
        reason=_reason(look),
        word=None if look.word is None else signed(look.word),
        pfn=_pfn(look.word),
        attributes=", ".join(_attributes(look)),
        kpage_flags="" if flags is None else ", ".join(flag_names(flags)),
        missed_holders=missed,
    )
    return PageExplanation.at(
        origin,
        tables={
            "steps": Table.of(Step, _steps(look, flags)),
            "holders": Table.of(PageHolder, holders),
        },
        sections={
            "process": process_of(identity),
            "verdict": verdict,
            "object": _object(look),
            "swap": _swap_place(look),
            "folio": None if look.walked is None else look.walked.folio,
        },
        notes=page_notes(look),
        is_complete=is_complete,
        cost=look.machine.cost(),
    )


def _steps(look: PageLook, flags: int | None) -> tuple[Step, ...]:
    return (
        _maps_step(look),
        *_table_steps(look),
        *_frame_steps(look, flags),
        *_object_steps(look),
        *_walk_steps(look),
        *_last_steps(look),
    )


def _maps_step(look: PageLook) -> Step:
    row = look.mapping
    line = (
        f"{row.start:x}-{row.stop:x} {row.permissions} {row.offset_bytes:08x} {row.device} "
        f"{row.inode} {row.path}"
    ).rstrip()
    meaning = wording.object_meaning(look.verdicts.facts.kind)
    if row.inode:
        meaning += f"; this is page {look.object_page} of it, {look.page} of the mapping"
    return Step(f"{look.process.path}/maps: what is mapped at this address", line, meaning)


def _table_steps(look: PageLook) -> list[Step]:
    steps = []
    path = f"{look.process.path}/pagemap"
    if look.categories is not None:
        steps.append(
            Step(
                f"{path}: PAGEMAP_SCAN of this page",
                wording.categories_answer(look.categories),
                wording.categories_meaning(look.categories),
            )
        )
    asked = f"{path}: 8 bytes at {look.address // look.size * 8:#x}"
    if look.word is None:
        meaning = "beyond the page table of any process: memory of the kernel"
        return [*steps, Step(asked, "end of file", meaning)]
    is_object = look.verdicts.facts.kind not in ("anonymous", "special", "device")
    answer = wording.word_answer(look.word)
    if look.verdicts.facts.kind in ("special", "device") and not look.word:
        meaning = "pagemap does not see memory that the kernel or a device maps in by itself"
    else:
        meaning = wording.word_meaning(look.word, is_object)
    return [*steps, Step(asked, answer, meaning)]


def _frame_steps(look: PageLook, flags: int | None) -> list[Step]:
    if flags is None:
        return []
    asked = f"{look.machine.root}/kpageflags: 8 bytes at {(_pfn(look.word) or 0) * 8:#x}"
    answer = f"0x{flags:016x}: {', '.join(flag_names(flags)) or 'no bit is set'}"
    return [Step(asked, answer, wording.kpage_meaning(flags))]


def _kpage_flags(look: PageLook) -> int | None:
    """Return the flags of the frame, None if there is none or it may not be known."""
    pfn = _pfn(look.word)
    if pfn is None or not look.machine.may("kpageflags"):
        return None
    try:
        frames = np.array([pfn], np.uint64)
        return int(read_kpageflags(frames, look.machine)[0])
    except MemlensError:
        return None


def _object_steps(look: PageLook) -> list[Step]:
    steps = []
    page, kind = look.object_page, look.verdicts.facts.kind
    for call in look.trace.of_page(page):
        answer = wording.call_answer(call, page)
        times = look.trace.repeats[call]
        if times > 1 and call.name in ("seek", "cachestat", "mincore"):
            answer += f" ({times} times)"
        meaning = wording.call_meaning(call, page, kind)
        steps.append(Step(wording.call_asked(call, page, _way(look)), answer, meaning))
    return steps


def _walk_steps(look: PageLook) -> list[Step]:
    if look.walked is None:
        return []
    asked = f"the page cache of the object, walked by BPF: page {look.object_page}"
    return [Step(asked, walked_answer(look.walked), walked_meaning(look.walked))]


def _way(look: PageLook) -> str:
    """Return how the object was reached."""
    if "map_files" in look.machine.meter.used:
        return f"{look.process.path}/map_files/{look.mapping.name}"
    return "the object, by a descriptor or by its path"


def _last_steps(look: PageLook) -> list[Step]:
    steps = []
    if look.trace.calls and look.word_after is not None:
        is_same = look.word == look.word_after
        meaning = "unchanged while the object was asked" if is_same else "it changed meanwhile"
        steps.append(
            Step(
                f"{look.process.path}/pagemap again, after the object",
                wording.word_answer(look.word_after),
                meaning,
            )
        )
    if look.is_by_totals:
        steps.append(
            Step(
                f"{look.process.path}/smaps: totals of the mapping, beside all its pages",
                "they decide" if look.value < Verdict.FIRST_REASON else "they do not decide",
                "all pages that this reader cannot tell apart are one thing, or it stays open",
            )
        )
    return steps


def _reason(look: PageLook) -> str:
    if look.value < Verdict.FIRST_REASON:
        return ""
    reason = REASONS[look.value - Verdict.FIRST_REASON]
    if look.value == Reason.NOT_OPENED:
        reason = look.verdicts.refusal or reason
    if look.swap_in_mapping is not None:
        swap = format_size(look.swap_in_mapping * look.size)
        reason += f" (smaps counts {swap} of swap in this mapping)"
    return reason


def _object(look: PageLook) -> PageObject | None:
    row = look.mapping
    if look.is_anonymous:
        return None
    kind = object_label(look.verdicts.facts)
    offset = look.object_page * look.size
    return PageObject(kind, row.path, row.device, signed(row.inode), signed(offset))


def _pfn(word: int | None) -> int | None:
    if word is None or not word & int(PM_PRESENT):
        return None
    return word & int(PM_PFN) or None


def _swap_place(look: PageLook) -> SwapPlace | None:
    if not CLASSES[verdict_class(look.value)].holds_slot:
        return None
    place = None if look.word is None else word_place(look.word)
    if place is None and look.walked is not None and look.walked.holds == "swap":
        place = look.walked.area, look.walked.slot
    return None if place is None else name_place(*place, look.machine)


def _attributes(look: PageLook) -> tuple[str, ...]:
    if look.word is None:
        return ()
    found = [
        name.replace("_", " ")
        for name in bit_names(look.word)
        if name in ("exclusive", "soft_dirty", "uffd_wp")
    ]
    is_own = look.value in (PageClass.PRESENT, PageClass.SWAPPED) and not (
        look.word & int(PM_FILE)
    )
    is_private_file = look.mapping.inode != 0 and not look.mapping.is_shared
    if is_private_file and not look.is_anonymous and is_own and look.word:
        found.insert(0, "private copy")
    if look.categories is not None and look.categories & _HUGE:
        found.append("huge")
    return tuple(found)


def _holders(look: PageLook) -> tuple[list[PageHolder], int]:
    if look.is_anonymous or look.verdicts.facts.kind == "special":
        return [], 0
    address = look.address - look.address % look.size
    return find_holders(look.process.pid, look.mapping, address, look.machine)


def page_notes(look: PageLook) -> tuple[str, ...]:
    """Return what makes less of an explanation: a page on the move, or evidence at odds."""
    if look.is_steady and look.tries == 1:
        return ()
    if look.is_steady:
        return (f"the page changed during the look, which was begun {look.tries} times",)
    if look.is_contradicted:
        text = "the evidence contradicts itself: the page-cache walk is against the verdict"
        return (f"{text}, and nothing changed during {look.tries} looks",)
    return (f"the page changed during each of {look.tries} looks: this is of the last",)
