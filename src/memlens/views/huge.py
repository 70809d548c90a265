"""What ``memlens huge`` shows; transparent huge pages under the names of thpmaps."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from memlens.pages.folios import FITS, KINDS
from memlens.physical.records import HugeFigures, HugeProcess, HugeResult
from memlens.units import count_of, escape_text, format_size

SCHEMA = "memlens.huge/1"

# Below, there is no transparent huge page of anonymous memory, and thpmaps shows none.
_LEAST_ORDER = 2


class HugeRow(NamedTuple):
    """A counter of thpmaps by its name, what it is a share of, and its pages."""

    name: str
    kind: str
    pages: int


def list_rows(
    figures: HugeFigures, result: HugeResult, has_empty: bool = False
) -> Iterator[HugeRow]:
    """Yield the counters of transparent huge pages; those that are 0 only if asked for."""
    for row in _all_rows(figures, result):
        if row.pages or has_empty:
            yield row


def _all_rows(figures: HugeFigures, result: HugeResult) -> Iterator[HugeRow]:
    page_kib, pmd_order = result.page_size_bytes >> 10, result.pmd_order
    for kind, name in enumerate(KINDS):
        pmd = int(figures.pmd_pages[kind])
        yield HugeRow(f"{name}-thp-pmd-aligned-{page_kib << pmd_order}kB", name, pmd)
        if result.is_hidden:
            continue
        for fit, label in enumerate(FITS):
            for order in range(1, pmd_order + 1):
                pages = int(figures.tally.whole[kind, fit, order])
                if order < _LEAST_ORDER and not pages:
                    continue
                size_kib = page_kib << order
                yield HugeRow(f"{name}-thp-pte-{label}-{size_kib}kB", name, pages)
        partial = int(figures.tally.partial[kind])
        yield HugeRow(f"{name}-thp-pte-partial", name, partial)
        for order in result.block_orders:
            size_kib = page_kib << order
            blocks = int(figures.tally.blocks[order][kind])
            yield HugeRow(f"{name}-cont-pmd-aligned-{size_kib}kB", name, pmd)
            yield HugeRow(f"{name}-cont-pte-aligned-{size_kib}kB", name, blocks)


def render_json(result: HugeResult) -> str:
    """Return one JSON object."""
    document = {
        "schema": SCHEMA,
        "page_size_bytes": result.page_size_bytes,
        **_figures_json(result.figures, result),
        "ksm_frames": _known(result.ksm_frames, result),
        "ksm_saved_pages": _known(result.figures.ksm_pages - result.ksm_frames, result),
        "processes": [_process_json(process, result) for process in result.processes],
        "missed": [{"pid": pid, "reason": reason} for pid, reason in result.missed],
        "notes": list(find_notes(result)),
    }
    return json.dumps(document) + "\n"


def _process_json(process: HugeProcess, result: HugeResult) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "name": process.name,
        **_figures_json(process.figures, result),
        "ksm_profit_bytes": process.ksm_profit_bytes,
        "mappings": [
            {
                "start": mapping.start,
                "stop": mapping.stop,
                "permissions": mapping.permissions,
                "path": mapping.path,
                **_figures_json(mapping.figures, result),
            }
            for mapping in process.mappings
            if _has_anything(mapping.figures, result)
        ],
    }


def _figures_json(figures: HugeFigures, result: HugeResult) -> dict[str, Any]:
    rows = list_rows(figures, result, has_empty=True)
    return {
        "thp": {row.name: row.pages for row in rows},
        "anonymous_pages": figures.anon_pages,
        "file_pages": figures.file_pages,
        "hugetlb_pages": {str(size): pages for size, pages in figures.hugetlb_pages.items()},
        "ksm_pages": _known(figures.ksm_pages, result),
        "zero_pages": figures.zero_pages,
        "huge_zero_pages": figures.huge_zero_pages,
        "moved_pages": figures.moved_pages,
        "nodes": {str(node): pages for node, pages in sorted(figures.node_pages.items())},
    }


def _known(pages: int, result: HugeResult) -> int | None:
    return None if result.is_hidden else pages


def _has_anything(figures: HugeFigures, result: HugeResult) -> bool:
    return bool(
        figures.hugetlb_pages
        or figures.ksm_pages
        or figures.zero_pages
        or figures.huge_zero_pages
        or next(list_rows(figures, result), None)
    )


def render_text(result: HugeResult, has_mappings: bool) -> Iterator[str]:
    """
    Yield the lines for a person.

    :param has_mappings: whether to show the mappings, not only the sum.
    """
    for process in result.processes if has_mappings else ():
        yield f"{escape_text(process.name)}  PID {process.pid}\n"
        for mapping in process.mappings:
            if _has_anything(mapping.figures, result):
                name = escape_text(mapping.path)
                yield f"  {mapping.start:x}-{mapping.stop:x} {mapping.permissions} {name}\n"
                yield from _figure_lines(mapping.figures, result, "    ")
        yield "\n"
    yield f"Total of {count_of(len(result.processes), 'process', 'processes')}\n"
    yield from _figure_lines(result.figures, result, "  ")
    if not _has_anything(result.figures, result):
        yield "  no huge, merged or zero pages\n"
    for note in find_notes(result):
        yield f"note: {note}\n"


def _figure_lines(figures: HugeFigures, result: HugeResult, indent: str) -> Iterator[str]:
    totals = {"anon": figures.anon_pages, "file": figures.file_pages}
    for row in list_rows(figures, result):
        share = f"{row.pages / totals[row.kind]:6.1%} of {row.kind}" if totals[row.kind] else ""
        yield _line(indent, row.name, row.pages, result, share)
    for size, pages in sorted(figures.hugetlb_pages.items()):
        yield _line(indent, f"hugetlb {format_size(size)}", pages, result)
    for name, pages in (
        ("merged by KSM", figures.ksm_pages),
        ("zero page", figures.zero_pages),
        ("huge zero page", figures.huge_zero_pages),
    ):
        if pages:
            yield _line(indent, name, pages, result)
    for node, pages in sorted(figures.node_pages.items()):
        yield _line(indent, f"thp on node {node}", pages, result)


def _line(indent: str, name: str, pages: int, result: HugeResult, rest: str = "") -> str:
    size = format_size(pages * result.page_size_bytes)
    return f"{indent}{name:<32} {pages:>10} pages {size:>6} {rest}".rstrip() + "\n"


def find_notes(result: HugeResult) -> Iterator[str]:
    """Yield what a reader of the numbers has to know."""
    figures = result.figures
    if figures.ksm_pages:
        saved = (figures.ksm_pages - result.ksm_frames) * result.page_size_bytes
        yield (
            f"KSM keeps {figures.ksm_pages} pages of these processes in {result.ksm_frames} "
            f"frames, which saves {format_size(saved)} here"
        )
    if figures.huge_zero_pages:
        yield (
            "the huge zero page costs no memory; beside other memory in a mapping it also "
            "counts as file-thp-pte-aligned, as thpmaps has it"
        )
    if figures.moved_pages:
        yield f"{figures.moved_pages} pages changed at every look and are left out"
    if len(result.processes) > 1:
        yield "a page that several processes map counts for each"
    for pid, reason in result.missed:
        yield f"process {pid} is left out: {escape_text(reason)}"
    yield from result.notes
