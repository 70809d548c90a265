"""Process maps made by hand."""

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from memlens.pages.classes import PageClass
from memlens.pages.runs import encode_runs, select_runs
from memlens.report import Cost
from memlens.residency.records import Kernel, MappingPages, Process, ProcessMap, UnknownRun

PAGE = 4096
GLYPHS = {glyph: kind for kind, glyph in enumerate("PzckSda.GXeD?")}

MakeMapping = Callable[..., MappingPages]
MakeMap = Callable[..., ProcessMap]


def mapping_of(
    pages: str, path: str = "/lib/x.so", start: int = 0x1000, reason: str = "why"
) -> MappingPages:
    """Return a mapping with a page for every glyph; a blank is a page not scanned."""
    values = np.array([GLYPHS.get(glyph, 255) for glyph in pages], np.uint8)
    runs = encode_runs(values)
    runs = select_runs(runs, runs.value != 255)
    unknown = tuple(
        UnknownRun(first, count, reason)
        for first, count, value in runs
        if value == PageClass.UNKNOWN
    )
    return MappingPages(
        start=start,
        stop=start + len(pages) * PAGE,
        permissions="rw-p",
        offset_bytes=0,
        device="fe:01",
        inode=7,
        path=path,
        object="file",
        page_size_bytes=PAGE,
        runs=runs,
        unknown=unknown,
    )


@pytest.fixture
def make_mapping() -> MakeMapping:
    return mapping_of


@pytest.fixture
def make_map() -> MakeMap:
    def make(*mappings: MappingPages, **changes: object) -> ProcessMap:
        values: dict[str, object] = {
            "kernel": Kernel("6.12.0", PAGE),
            "process": Process(
                42, "postgres", ("postgres", "-D", "/data"), datetime(2024, 5, 6, tzinfo=UTC)
            ),
            "evidence": {
                "pagemap": True,
                "smaps": True,
                "mincore": False,
                "pfns_visible": False,
            },
            "used": ("pagemap",),
            "mappings": mappings,
            "cost": Cost(0.0123, 4096, 0.001),
        }
        return ProcessMap(**{**values, **changes})

    return make
