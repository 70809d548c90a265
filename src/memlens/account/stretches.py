"""Stretches of address space that cover mappings without the wide gaps between them."""

from collections.abc import Iterable, Iterator

from memlens.kernel.maps import Mapping

# A gap up to this is cheaper to scan over than to skip by another call.
GAP_PAGES = 1 << 20


def stretches(
    mappings: Iterable[Mapping], page_size_bytes: int, gap_pages: int = GAP_PAGES
) -> Iterator[tuple[int, int]]:
    """
    Yield half-open page ranges that cover all mappings.

    :param mappings: in the order of their addresses.
    :param page_size_bytes: size of a page.
    :param gap_pages: the widest gap that a stretch may run over.
    """
    size = page_size_bytes
    return join_ranges(((m.start // size, m.stop // size) for m in mappings), gap_pages)


def join_ranges(
    ranges: Iterable[tuple[int, int]], gap_pages: int = GAP_PAGES
) -> Iterator[tuple[int, int]]:
    """
    Yield half-open ranges that cover all of the given ones, which are in order.

    >>> list(join_ranges([(0, 2), (3, 4), (9, 10)], gap_pages=1))
    [(0, 4), (9, 10)]
    """
    first = last = -1
    for start, stop in ranges:
        if first < 0:
            first = start
        elif start - last > gap_pages:
            yield first, last
            first = start
        last = stop
    if first >= 0:
        yield first, last
