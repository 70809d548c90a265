"""
The demo: build memory of every kind, look at it, compare with how it was made.

What the pages are is known from how they were made, not from memlens; that they still
are is proven by their maker right before and right after the look.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from subprocess import Popen
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError, Unsupported
from memlens.kernel.procfs import page_size_bytes
from memlens.kernel.swaps import read_swap
from memlens.kernel.syscalls import is_own_namespace
from memlens.pages.bits import PM_PRESENT, PM_SWAP
from memlens.pages.classes import PageClass
from memlens.record import Table
from memlens.report import Cost, Missed, Origin
from memlens.residency.capture import map_process
from memlens.residency.records import ProcessMap
from memlens.scan.machine import Machine, Stopped
from memlens.selftest.records import (
    Answer,
    DemoResult,
    DemoTotal,
    Disagreement,
    Finding,
    LeftOut,
    Reason,
    SwapUse,
)
from memlens.selftest.specimens import (
    Specimen,
    SpecimenProcess,
    ask_helper,
    start_helper,
    stop_helper,
)

# Times that specimens which the kernel moved meanwhile are made anew and looked at.
_TRIES = 4

# Swap with less than that free is as good as none.
_ENOUGH_SWAP_PAGES = 4096

# What pagemap alone says of a page, and for which classes that is the truth.
_TRUE_FOR = {
    "present": frozenset({PageClass.PRESENT}),
    "swapped": frozenset({PageClass.SWAPPED}),
    "nothing": frozenset({PageClass.NONE, PageClass.BEYOND_END}),
}
_T = TypeVar("_T")
OnStage = Callable[[str], None]


def run_demo(
    *,
    use_swap: bool = True,
    swap_kinds: tuple[str, ...] = ("zram", "file"),
    on_stage: OnStage | None = None,
    proc: str = "/proc",
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> DemoResult:
    """
    Build memory of every kind in a child process and look at it.

    :param use_swap: whether to use swap, and to make some if there is none.
    :param swap_kinds: kinds of swap to make, the first that can be.
    :param on_stage: told in a few words what happens now.
    :param proc: root of the /proc to look at the child in.
    :param budget_s: seconds after which no further stage begins.
    :param on_progress: called with stages begun and 0.
    :param should_stop: asked before each stage; True ends the demo, and what was made and not
        looked at is left out.
    :raises MemlensError: if nothing can be built or looked at at all.

    Whatever it makes is taken away again, also if it fails or is killed.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    origin = machine.origin()
    if not is_own_namespace(machine):
        raise Unsupported("does not show this process and its children", path=proc)
    run = _Run(machine, on_stage)
    leftovers: list[str] = []
    try:
        run.tell("making swap")
        with _swap(swap_kinds if use_swap else (), machine, leftovers) as run.swap:
            run.build_and_look()
            # What was looked at is known, whoever wants an end now.
            run.tell("taking everything away", is_last=True)
    except Stopped:
        run.is_complete = False
    swap = replace(run.swap, leftovers="; ".join(leftovers))
    return run.result(origin, swap)


@contextmanager
def _swap(kinds: tuple[str, ...], machine: Machine, leftovers: list[str]) -> Iterator[SwapUse]:
    """Yield the swap there is, or swap of our own, which is then taken away."""
    if not kinds:
        yield SwapUse("none", reason="swap was not wanted (--no-swap)")
        return
    there = _existing_swap(machine)
    if there is not None:
        yield there
        return
    if os.geteuid() != 0:
        yield SwapUse("none", reason="there is no swap, and only root may make some")
        return
    maker = start_helper("swap_maker", *kinds)
    try:
        yield _ask_for_swap(maker)
    finally:
        words = stop_helper(maker)
        if words:
            leftovers.append(words)


def _ask_for_swap(maker: Popen[str]) -> SwapUse:
    try:
        made = ask_helper(maker, "make")
    except MemlensError as error:
        return SwapUse(
            "none", reason=f"there is no swap, and none can be made: {error.message}"
        )
    return SwapUse(made["kind"], made["path"], is_made=True)


def _existing_swap(machine: Machine) -> SwapUse | None:
    """Return the swap there is, None if there is too little."""
    try:
        areas = read_swap(machine).areas
    except MemlensError:
        return None
    if sum(area.size_pages - area.used_pages for area in areas) < _ENOUGH_SWAP_PAGES:
        return None
    is_zram = all(area.kind == "zram" for area in areas)
    return SwapUse("zram" if is_zram else "slow", ", ".join(area.path for area in areas))


@dataclass(slots=True)
class Judged:
    """
    One specimen, and what was said of it.

    :param answers: what was said of its pages, in the order of the pages.
    :param disagreements: pages that memlens got wrong.
    :param reasons: why pages could not be known.
    """

    finding: Finding
    answers: tuple[Answer, ...]
    disagreements: tuple[Disagreement, ...]
    reasons: tuple[Reason, ...]


@dataclass(slots=True)
class _Run:
    machine: Machine
    on_stage: OnStage | None
    swap: SwapUse = SwapUse("none", reason="the demo was ended before")
    judged: dict[int, Judged] = field(default_factory=dict)
    left_out: dict[int, LeftOut] = field(default_factory=dict)
    cost: Cost = Cost(0.0, 0, 0.0)
    stages: int = 0
    is_complete: bool = True

    def tell(self, stage: str, is_last: bool = False) -> None:
        """
        Say what happens now.

        :raises Stopped: if the caller wants an end, unless it comes anyway.
        """
        if self.on_stage is not None:
            self.on_stage(stage)
        if not is_last:
            self.machine.step(self.stages, 0)
        self.stages += 1

    def build_and_look(self) -> None:
        self.tell("building memory of every kind")
        with SpecimenProcess(self.swap.kind, self.swap.reason) as maker:
            open_ones = {specimen.number: specimen for specimen in maker.make()}
            for attempt in range(_TRIES):
                if attempt:
                    again = maker.make(open_ones)
                    open_ones = {specimen.number: specimen for specimen in again}
                self.tell("looking at every page")
                disproofs = maker.disproofs()
                result = map_process(maker.pid, words=True, proc=self.machine.root)
                disproofs = maker.disproofs() | disproofs
                self.cost = self.cost.plus(result.cost)
                for number, specimen in open_ones.items():
                    why = specimen.failure or disproofs.get(number, "")
                    if why:
                        row = LeftOut(number, specimen.family, specimen.how, why)
                        self.left_out[number] = row
                    else:
                        self.judged[number] = judge(specimen, result)
                        self.left_out.pop(number, None)
                open_ones = {n: open_ones[n] for n in disproofs if n in open_ones}
                if not open_ones:
                    break

    def result(self, origin: Origin, swap: SwapUse) -> DemoResult:
        judged = _in_order(self.judged)
        findings = [one.finding for one in judged]
        return DemoResult.at(
            origin,
            tables={
                "specimens": Table.of(Finding, findings),
                "answers": Table.of(Answer, chain(*(one.answers for one in judged))),
                "disagreements": Table.of(
                    Disagreement, chain(*(one.disagreements for one in judged))
                ),
                "reasons": Table.of(Reason, chain(*(one.reasons for one in judged))),
                "left_out": Table.of(LeftOut, _in_order(self.left_out)),
            },
            sections={"swap": swap, "total": total_of(findings)},
            missed=[]
            if self.is_complete
            else [Missed("memory that was not looked at yet", self.machine.why_over())],
            is_complete=self.is_complete,
            cost=replace(self.cost, wall_s=self.machine.meter.wall_s()),
        )


def total_of(findings: Sequence[Finding]) -> DemoTotal:
    """Return the sums over all specimens."""
    return DemoTotal(
        kinds=len(findings),
        pages=sum(row.pages for row in findings),
        misled_kinds=sum(1 for row in findings if row.misled_pages),
        misled_pages=sum(row.misled_pages for row in findings),
        unknown_pages=sum(row.unknown_pages for row in findings),
        wrong_pages=sum(row.wrong_pages for row in findings),
    )


def _in_order(rows: dict[int, _T]) -> list[_T]:
    return [row for _, row in sorted(rows.items())]


def judge(specimen: Specimen, result: ProcessMap) -> Judged:
    """
    Compare what memlens and pagemap say of a specimen with what it is.

    :param result: a map of the process that made it, with the raw words.
    """
    number = specimen.number
    classes, words, unknown = _pages_of(specimen, result)
    naive = [naive_answer(int(word)) for word in words]
    expected = [labels for pages, labels in specimen.expected for _ in range(pages)]
    found = [PageClass(value) for value in classes]
    disagreements = tuple(
        Disagreement(number, page, " or ".join(labels), kind.label)
        for page, (kind, labels) in enumerate(zip(found, expected, strict=True))
        if kind != PageClass.UNKNOWN and kind.label not in labels
    )
    answers = tuple(
        Answer(number, pages, said, kind.label, is_misleading(said, kind))
        for (said, kind), pages in Counter(zip(naive, found, strict=True)).items()
    )
    finding = Finding(
        number=number,
        family=specimen.family,
        how=specimen.how,
        first_page=specimen.address // page_size_bytes(),
        pages=specimen.pages,
        misled_pages=sum(answer.pages for answer in answers if answer.is_misleading),
        unknown_pages=found.count(PageClass.UNKNOWN),
        wrong_pages=len(disagreements),
    )
    reasons = tuple(Reason(number, reason) for reason in unknown)
    return Judged(finding, answers, disagreements, reasons)


def naive_answer(word: int) -> str:
    """
    Return what a reader of pagemap takes a word for who only knows bits 63 and 62.

    >>> naive_answer(1 << 63), naive_answer(1 << 62 | 31), naive_answer(0)
    ('present', 'swapped', 'nothing')
    """
    if word & int(PM_PRESENT):
        return "present"
    return "swapped" if word & int(PM_SWAP) else "nothing"


def is_misleading(naive: str, truth: PageClass) -> bool:
    """
    Return whether the answer of pagemap alone is untrue of a page.

    >>> is_misleading("nothing", PageClass.SWAPPED), is_misleading("nothing", PageClass.NONE)
    (True, False)
    """
    return truth != PageClass.UNKNOWN and truth not in _TRUE_FOR[naive]


def _pages_of(
    specimen: Specimen, result: ProcessMap
) -> tuple[NDArray[np.uint8], NDArray[np.uint64], tuple[str, ...]]:
    """Return class and word of each page of a specimen, and reasons for ``unknown``."""
    size = result.page_size_bytes
    classes = np.full(specimen.pages, PageClass.UNKNOWN, np.uint8)
    words = np.zeros(specimen.pages, np.uint64)
    reasons: dict[str, None] = {}
    stop = specimen.address + specimen.pages * size
    for mapping in result.each:
        if mapping.stop <= specimen.address or stop <= mapping.start:
            continue
        shift = (mapping.start - specimen.address) // size
        first, last = max(-shift, 0), min(mapping.pages, specimen.pages - shift)
        classes[first + shift : last + shift] = mapping.classes()[first:last]
        if mapping.words is not None:
            dense = np.zeros(mapping.pages, np.uint64)
            dense[mapping.words.page] = mapping.words.word
            words[first + shift : last + shift] = dense[first:last]
        reasons |= {run.reason: None for run in mapping.unknown}
    return classes, words, tuple(reasons)
