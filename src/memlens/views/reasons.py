"""What is unknown, and why: per run, and grouped for a summary."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.model import MappingPages, ProcessMap, Words
from memlens.pages.classes import PageClass
from memlens.pages.runs import Runs, select_runs
from memlens.pages.slotruns import restrict_slots

_PIECE = 1 << 15
# What smaps adds to a reason differs from mapping to mapping.
_SMAPS_NOTE = " (smaps counts "


class ListedRun(NamedTuple):
    """Consecutive pages of one class and, if it is unknown, of one reason."""

    first: int
    pages: int
    page_class: PageClass
    reason: str


class Unknown(NamedTuple):
    """A reason, and how many pages it leaves unknown in how many mappings."""

    reason: str
    pages: int
    mappings: int


def list_runs(mapping: MappingPages) -> Iterator[ListedRun]:
    """Yield the runs of a mapping; the unknown ones cut where the reason changes."""
    reasons = iter(mapping.unknown)
    for first, pages, value in _iterate(mapping.runs):
        if value != PageClass.UNKNOWN:
            yield ListedRun(first, pages, PageClass(value), "")
            continue
        at, stop = first, first + pages
        while at < stop:
            run = next((run for run in reasons if run.first + run.pages > at), None)
            if run is None:
                yield ListedRun(at, stop - at, PageClass.UNKNOWN, "")
                break
            end = min(run.first + run.pages, stop)
            yield ListedRun(at, end - at, PageClass.UNKNOWN, run.reason)
            at = end


def _iterate(runs: Runs) -> Iterator[tuple[int, int, int]]:
    """Iterate without making Python numbers of all runs at once."""
    for at in range(0, len(runs), _PIECE):
        part = slice(at, at + _PIECE)
        yield from Runs(runs.first[part], runs.pages[part], runs.value[part])


def group_unknown(result: ProcessMap) -> list[Unknown]:
    """Return why pages are unknown, the reason with most pages first."""
    pages: defaultdict[str, int] = defaultdict(int)
    mappings: defaultdict[str, set[int]] = defaultdict(set)
    # In a single mapping the note holds; it is the same for all of its pages.
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for mapping in result.mappings:
        for run in mapping.unknown:
            group = run.reason.partition(_SMAPS_NOTE)[0]
            pages[group] += run.pages
            mappings[group].add(mapping.start)
            texts[group].add(run.reason)
    found = [
        Unknown(texts[group].pop() if len(starts) == 1 else group, count, len(starts))
        for (group, count), starts in zip(pages.items(), mappings.values(), strict=True)
    ]
    return sorted(found, key=lambda unknown: -unknown.pages)


def select_classes(result: ProcessMap, wanted: frozenset[PageClass]) -> ProcessMap:
    """
    Return only the mappings that have pages of some classes, and of them only those pages.

    What is unknown in a mapping that stays remains listed; pages unknown in mappings that
    are left out may be of the wanted classes, and a note tells how many they are.
    """
    is_wanted = np.zeros(len(PageClass), bool)
    is_wanted[list(wanted)] = True
    kept = []
    hidden_pages = hidden_mappings = 0
    for mapping in result.mappings:
        runs = select_runs(mapping.runs, is_wanted[mapping.runs.value])
        if len(runs):
            words = _select_words(mapping.words, runs)
            slots = None if mapping.slots is None else restrict_slots(mapping.slots, runs)
            nodes = mapping.node_pages if PageClass.PRESENT in wanted else {}
            kept.append(replace(mapping, runs=runs, words=words, slots=slots, node_pages=nodes))
        elif mapping.unknown:
            hidden_mappings += 1
            hidden_pages += sum(run.pages for run in mapping.unknown)
    notes = result.notes
    if hidden_mappings:
        notes += (f"left out: {hidden_mappings} mappings with {hidden_pages} unknown pages",)
    return replace(result, mappings=tuple(kept), notes=notes)


def _select_words(words: Words | None, runs: Runs) -> Words | None:
    if words is None:
        return None
    index: NDArray[np.intp] = np.searchsorted(runs.first, words.page, side="right") - 1
    inside = (index >= 0) & (words.page < runs.stop[np.maximum(index, 0)])
    return Words(words.page[inside], words.word[inside])
