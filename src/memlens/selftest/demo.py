"""
The demo: build memory of every kind, look at it, compare with how it was made.

What the pages are is known from how they were made, not from memlens; that they still
are is proven by their maker (``selftest.specimen_maker``), from figures that it reads of
itself (smaps, mincore), right before and right after the look.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

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
_PROC = "/proc"
_START = """
import importlib, sys
sys.path.append(sys.argv[1])
importlib.import_module(sys.argv[2]).main(sys.argv[3:])
"""
_Helper = subprocess.Popen[str]
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


def _ask_for_swap(maker: _Helper) -> SwapUse:
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


@dataclass(frozen=True, slots=True)
class Specimen:
    """
    Pages of which it is known what they are.

    :param number: which one.
    :param family: the kind of memory, a heading.
    :param how: how it was made.
    :param address: of its first page.
    :param pages: how many.
    :param expected: labels of the classes that it may be in, ``(pages, labels)`` in order.
    :param failure: why it could not be made, "" if it was.
    """

    number: int
    family: str
    how: str
    address: int
    pages: int
    expected: tuple[tuple[int, tuple[str, ...]], ...]
    failure: str = ""


class SpecimenProcess:
    """
    The process that makes specimens, and ends when this does.

    :param swap: ``none``, ``zram`` (a page goes to swap and leaves nothing in RAM) or
        ``slow`` (it may leave a copy in the swap cache).
    :param why_no_swap: the reason, for what needs swap.
    :raises Unsupported: without /proc.
    """

    def __init__(self, swap: str, why_no_swap: str = "") -> None:
        # The maker proves what it made with files of its own.
        if not os.path.exists(f"{_PROC}/self/smaps"):
            raise Unsupported("not a proc file system, or one without smaps", path=_PROC)
        self._maker = start_helper("specimen_maker", swap, why_no_swap)

    def __enter__(self) -> "SpecimenProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return its PID."""
        return self._maker.pid

    def close(self) -> None:
        """End it, and wait until it has."""
        stop_helper(self._maker)

    def make(self, numbers: Iterable[int] = ()) -> list[Specimen]:
        """
        Make specimens, or make them anew.

        :param numbers: which ones; none for all there are.
        :raises MemlensError: if the maker fails as a whole.
        """
        rows = ask_helper(self._maker, "make", *map(str, numbers))
        return [_specimen(row) for row in rows]

    def disproofs(self) -> dict[int, str]:
        """Return what is not as it was made right now, by number, with the figure."""
        found = ask_helper(self._maker, "prove")
        return {int(number): text for number, text in found.items()}


def _specimen(row: dict[str, Any]) -> Specimen:
    expected = tuple((pages, tuple(labels)) for pages, labels in row.pop("expected"))
    return Specimen(expected=expected, **row)


def start_helper(module: str, *arguments: str) -> _Helper:
    """
    Start a module of this package as a process that ends when its input does.

    In a session of its own: Ctrl-C is for us, and what it has to undo it undoes even if
    we are killed.
    """
    # Last in the path: beside an installed package lie others, some named as Python's own.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    name = f"memlens.selftest.{module}"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, root, name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ask_helper(helper: _Helper, *words: str) -> Any:
    """
    Send one line to a helper and return its answer.

    :raises MemlensError: if it gives none.
    """
    line = ""
    if helper.stdin is not None and helper.stdout is not None:
        try:
            helper.stdin.write(" ".join(words) + "\n")
            helper.stdin.flush()
            line = helper.stdout.readline()
        except BrokenPipeError:
            pass
    if not line:
        raise MemlensError(f"the helper process ended early (exit code {helper.wait()})")
    answer = json.loads(line)
    if isinstance(answer, dict) and "error" in answer:
        raise MemlensError(str(answer["error"]))
    return answer


def stop_helper(helper: _Helper) -> str:
    """Close the input of a helper, wait until it has ended, and return its last words."""
    if helper.stdin is not None:
        try:
            helper.stdin.close()
        except BrokenPipeError:
            pass
    words = helper.stdout.read() if helper.stdout is not None else ""
    helper.wait()
    if helper.stdout is not None:
        helper.stdout.close()
    return words.strip()


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
