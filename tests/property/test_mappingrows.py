"""Mappings kept as columns are the rows that they were made of."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.kernel.maps import Mapping, table_of
from memlens.pages.classes import PageClass
from memlens.pages.runs import Runs, count_runs, decode_runs, encode_runs, join_runs
from memlens.residency.tables import MappingRows, join_rows

SIZE = 4096
values = st.lists(st.integers(0, len(PageClass) - 1), min_size=1, max_size=6)
Made = list[tuple[int, list[int]]]
made = st.lists(st.tuples(st.integers(0, 4), values), max_size=8)


def rows_of(mappings: Made, others: int, first: int) -> MappingRows:
    """Return rows of a table of places of which it has only some."""
    lines, parts = [], []
    for number, (place, pages) in enumerate(mappings, first):
        start = number * 16 * SIZE
        stop = start + len(pages) * SIZE
        lines.append(Mapping(start, stop, "r--p", 0, "fe:01", place + 1, f"/{place}"))
        parts.append(encode_runs(np.array(pages, np.uint8)))
    extra = [Mapping(0, SIZE, "r--p", 0, "fe:01", n + 1, f"/{n}") for n in range(others)]
    table = table_of([*lines, *extra])
    used = {place for place, _ in mappings}
    labels = [
        place.path if int(place.path[1:]) in used else "not read" for place in table.places
    ]
    runs = (
        join_runs(parts)
        if parts
        else Runs(*(np.empty(0, np.int64),) * 2, np.empty(0, np.uint8))
    )
    edges = np.cumsum([0, *map(len, parts)])
    return MappingRows(table.take(slice(len(lines))), labels, runs, edges, {})


@given(made, made, st.integers(0, 5))
def test_joined_rows_are_those_of_the_parts(one: Made, other: Made, others: int) -> None:
    joined = join_rows([rows_of(one, others, 0), rows_of(other, others, 100)])
    assert len(joined) == len(one) + len(other)
    counts = joined.counts()
    for row, ((place, pages), counted) in enumerate(zip([*one, *other], counts, strict=True)):
        assert joined.maps[row].path == joined.labels[joined.maps.place[row]] == f"/{place}"
        runs = joined.found(row).runs
        assert decode_runs(runs, len(pages)).tolist() == pages
        assert counted.tolist() == count_runs(runs, len(PageClass)).tolist()
    backwards = joined.take(np.arange(len(joined))[::-1])
    start = joined.maps.start.tolist()
    assert backwards.maps.start.tolist() == start[::-1]
    assert backwards.sorted().maps.start.tolist() == start
