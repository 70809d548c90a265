"""What ``memlens flags`` shows: combinations of flags, or pages one after the other."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memlens.pages.flagfilter import Filter
from memlens.pages.flags import (
    PAGEMAP_FLAGS,
    expand_words,
    flag_names,
    group_words,
    known_words,
)
from memlens.units import escape_text, format_size

if TYPE_CHECKING:
    from memlens.physical.records import FlagCounts, PageRange

SCHEMA = "memlens.flags/1"


@dataclass(frozen=True, slots=True)
class FlagOptions:
    """
    How to show flags.

    :param where: which pages, by all their bits.
    :param bits: which pages, by the bits that are shown, as page-types does it.
    :param is_raw: show every bit, as ``page-types -r`` does, not only the documented ones.
    """

    where: Filter
    bits: Filter
    is_raw: bool = False

    def raw(self) -> "FlagOptions":
        """Return the same that shows every bit."""
        return replace(self, is_raw=True)

    def show(self, joined: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the words to show for joined words."""
        return expand_words(joined) if self.is_raw else known_words(joined)

    @property
    def asks_hidden(self) -> bool:
        """Return whether the answer depends on more than pagemap says."""
        return bool((self.where.mask | self.bits.mask) & ~PAGEMAP_FLAGS)

    def keeps(self, joined: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which joined words are asked for."""
        return self.where(expand_words(joined)) & self.bits(self.show(joined))


def combinations(counts: "FlagCounts", options: FlagOptions) -> list[tuple[int, int]]:
    """Return ``(word, pages)``, most pages first."""
    kept = options.keeps(counts.words)
    words, pages = group_words(options.show(counts.words[kept]), counts.pages[kept])
    rows = zip(words.tolist(), pages.tolist(), strict=True)
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def render_json(counts: "FlagCounts", options: FlagOptions, subject: dict[str, Any]) -> str:
    """Return one JSON object."""
    options = _shown_options(counts, options)
    rows = combinations(counts, options)
    document = {
        "schema": SCHEMA,
        **subject,
        "page_size_bytes": counts.page_size_bytes,
        "combinations": [
            {"word": word, "flags": flag_names(word), "pages": pages} for word, pages in rows
        ],
        "total_pages": sum(pages for _, pages in rows),
        "frames": counts.frames,
        "swapped_pages": counts.swapped_pages,
        "marker_pages": counts.marker_pages,
        "moved_pages": counts.moved_pages,
        "hidden_pages": counts.hidden_pages,
        "nodes": {str(node): pages for node, pages in counts.node_pages.items()},
        "is_complete": counts.is_complete,
        "notes": list(find_notes(counts)),
    }
    return json.dumps(document) + "\n"


def render_text(counts: "FlagCounts", options: FlagOptions, title: str) -> Iterator[str]:
    """Yield the lines of a table."""
    options = _shown_options(counts, options)
    rows = combinations(counts, options)
    total = sum(pages for _, pages in rows)
    yield f"{escape_text(title)}\n\n"
    yield f"{'pages':>12} {'size':>6} {'share':>6}  {'word':<18}  flags\n"
    for word, pages in rows:
        share = f"{pages / total:.1%}"
        names = ", ".join(flag_names(word)) or "(none)"
        size = format_size(pages * counts.page_size_bytes)
        yield f"{pages:>12} {size:>6} {share:>6}  {word:#018x}  {names}\n"
    yield f"{total:>12} {format_size(total * counts.page_size_bytes):>6}  total\n"
    for node, pages in counts.node_pages.items():
        yield f"{pages:>12} {format_size(pages * counts.page_size_bytes):>6}  on node {node}\n"
    for note in find_notes(counts):
        yield f"note: {note}\n"


def find_notes(counts: "FlagCounts") -> Iterator[str]:
    """Yield what a reader of the numbers has to know; all of them, whatever the filter."""
    if counts.frames is not None and counts.frames < _mapped(counts):
        shared = _mapped(counts) - counts.frames
        yield f"{counts.frames} distinct page frames: {shared} pages share one with another"
    if counts.swapped_pages:
        yield f"{counts.swapped_pages} pages are swapped out: no frame, only the flag swap"
    if counts.marker_pages:
        yield (
            f"{counts.marker_pages} entries look like swap and are none: "
            "guards, poison, or pages in migration"
        )
    if counts.moved_pages:
        yield f"{counts.moved_pages} pages changed at every look and are left out"
    if counts.hidden_pages:
        yield (
            f"the flags or slots of {counts.hidden_pages} pages are not known; what pagemap "
            "says of them is shown"
        )
    if not counts.is_complete:
        yield "stopped early: these are the pages that were read"
    yield from counts.notes


def _shown_options(counts: "FlagCounts", options: FlagOptions) -> FlagOptions:
    """Return how to show: what pagemap says, where that is all there is."""
    return options.raw() if counts.hidden_pages else options


def _mapped(counts: "FlagCounts") -> int:
    return counts.total_pages - counts.swapped_pages - counts.marker_pages


def list_text(
    ranges: Iterable["PageRange"], options: FlagOptions, cgroups: dict[int, str], unit: int
) -> Iterator[str]:
    """Yield a line for each range of pages; addresses and frames are hexadecimal."""
    yield f"{'address':>16} {'pages':>8} {'frame':>10} {'maps':>5}  flags  [cgroup]\n"
    for row in ranges:
        place = "-" if row.place < 0 else f"{row.place * unit:x}"
        maps = "?" if row.map_count is None else str(row.map_count)
        names = ", ".join(flag_names(_shown(row, options))) or "(none)"
        owner = f"  [{escape_text(_owner(row, cgroups))}]" if row.cgroup else ""
        frame = "?" if row.pfn is None else f"{row.pfn:x}"
        yield f"{place:>16} {row.pages:>8} {frame:>10} {maps:>5}  {names}{owner}\n"


def list_json(
    ranges: Iterable["PageRange"],
    options: FlagOptions,
    cgroups: dict[int, str],
    unit: int,
    subject: dict[str, Any],
) -> Iterator[str]:
    """Yield the pieces of one JSON object, a line per range; ``list_end`` closes it."""
    head = {"schema": SCHEMA, **subject, "page_size_bytes": unit}
    yield json.dumps(head)[:-1] + ', "ranges": ['
    total = 0
    for number, row in enumerate(ranges):
        word = _shown(row, options)
        yield (",\n" if number else "\n") + json.dumps(
            {
                "address": None if row.place < 0 else row.place * unit,
                "pages": row.pages,
                "pfn": row.pfn,
                "word": word,
                "flags": flag_names(word),
                "map_count": row.map_count,
                "cgroup": _owner(row, cgroups) if row.cgroup else None,
            }
        )
        total += row.pages
    yield f'], "total_pages": {total}'


def list_end(is_stopped: bool, notes: Sequence[str], as_json: bool) -> str:
    """Return what ends a list, once it is known whether it is whole."""
    if as_json:
        end = {"is_complete": not is_stopped, "notes": list(notes)}
        return f", {json.dumps(end)[1:]}\n"
    early = ["stopped early: there are more pages"] if is_stopped else []
    return "".join(f"note: {note}\n" for note in (*early, *notes))


def _shown(row: "PageRange", options: FlagOptions) -> int:
    return int(options.show(np.array([row.joined], np.uint64))[0])


def _owner(row: "PageRange", cgroups: dict[int, str]) -> str:
    return cgroups.get(row.cgroup or 0, f"@{row.cgroup}")
