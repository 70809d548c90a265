"""
The demo: build memory of every kind, look at it, compare with how it was made.

What the pages are is known from how they were made, not from memlens; that they still
are is proven by their maker right before and right after the look.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError
from memlens.kernel.swaps import read_swap
from memlens.pages.bits import PM_PRESENT, PM_SWAP
from memlens.pages.classes import PageClass
from memlens.residency.capture import map_process
from memlens.residency.records import Kernel, ProcessMap
from memlens.scan.machine import Machine
from memlens.selftest.records import Answer, DemoResult, Disagreement, Finding, LeftOut, SwapUse
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
) -> DemoResult:
    """
    Build memory of every kind in a child process and look at it.

    :param use_swap: whether to use swap, and to make some if there is none.
    :param swap_kinds: kinds of swap to make, the first that can be.
    :param on_stage: told in a few words what happens now.
    :raises MemlensError: if nothing can be built or looked at at all.

    Whatever it makes is taken away again, also if it fails or is killed.
    """
    tell = on_stage or (lambda _: None)
    started = time.monotonic()
    leftovers: list[str] = []
    with _swap(swap_kinds if use_swap else (), tell, leftovers) as swap:
        findings, left_out, kernel = _build_and_look(swap, tell)
        tell("taking everything away")
    return DemoResult(
        kernel=kernel,
        swap=swap,
        findings=findings,
        left_out=left_out,
        wall_s=time.monotonic() - started,
        leftovers="; ".join(leftovers),
    )


@contextmanager
def _swap(kinds: tuple[str, ...], tell: OnStage, leftovers: list[str]) -> Iterator[SwapUse]:
    """Yield the swap there is, or swap of our own, which is then taken away."""
    if not kinds:
        yield SwapUse("none", reason="swap was not wanted (--no-swap)")
        return
    there = _existing_swap()
    if there is not None:
        yield there
        return
    if os.geteuid() != 0:
        yield SwapUse("none", reason="there is no swap, and only root may make some")
        return
    tell("making swap")
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
    return SwapUse(made["kind"], (made["path"],), is_made=True)


def _existing_swap() -> SwapUse | None:
    """Return the swap there is, None if there is too little."""
    try:
        areas = read_swap(Machine()).areas
    except MemlensError:
        return None
    if sum(area.size_pages - area.used_pages for area in areas) < _ENOUGH_SWAP_PAGES:
        return None
    is_zram = all(area.kind == "zram" for area in areas)
    return SwapUse("zram" if is_zram else "slow", tuple(area.path for area in areas))


def _build_and_look(
    swap: SwapUse, tell: OnStage
) -> tuple[tuple[Finding, ...], tuple[LeftOut, ...], Kernel]:
    tell("building memory of every kind")
    with SpecimenProcess(swap.kind, swap.reason) as maker:
        open_ones = {specimen.number: specimen for specimen in maker.make()}
        findings: dict[int, Finding] = {}
        left_out: dict[int, LeftOut] = {}
        for attempt in range(_TRIES):
            if attempt:
                again = maker.make(open_ones)
                open_ones = {specimen.number: specimen for specimen in again}
            tell("looking at every page")
            disproofs = maker.disproofs()
            result = map_process(maker.pid, words=True)
            disproofs = maker.disproofs() | disproofs
            for number, specimen in open_ones.items():
                why = specimen.failure or disproofs.get(number, "")
                if why:
                    left_out[number] = LeftOut(specimen.family, specimen.how, why)
                else:
                    findings[number] = judge(specimen, result)
                    left_out.pop(number, None)
            open_ones = {n: open_ones[n] for n in disproofs if n in open_ones}
            if not open_ones:
                break
        return (
            _in_order(findings),
            _in_order(left_out),
            Kernel(result.kernel, result.page_size_bytes),
        )


def _in_order(rows: dict[int, _T]) -> tuple[_T, ...]:
    return tuple(row for _, row in sorted(rows.items()))


def judge(specimen: Specimen, result: ProcessMap) -> Finding:
    """
    Compare what memlens and pagemap say of a specimen with what it is.

    :param result: a map of the process that made it, with the raw words.
    """
    classes, words, unknown = _pages_of(specimen, result)
    naive = [naive_answer(int(word)) for word in words]
    expected = [labels for pages, labels in specimen.expected for _ in range(pages)]
    found = [PageClass(value) for value in classes]
    disagreements = tuple(
        Disagreement(page, labels, kind.label)
        for page, (kind, labels) in enumerate(zip(found, expected, strict=True))
        if kind != PageClass.UNKNOWN and kind.label not in labels
    )
    return Finding(
        family=specimen.family,
        how=specimen.how,
        address=specimen.address,
        pages=specimen.pages,
        answers=tuple(
            Answer(pages, said, kind.label, is_misleading(said, kind))
            for (said, kind), pages in Counter(zip(naive, found, strict=True)).items()
        ),
        disagreements=disagreements,
        unknown=unknown,
    )


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
