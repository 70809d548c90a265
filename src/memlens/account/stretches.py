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
    first = last = -1
    for mapping in mappings:
        start, stop = mapping.start // page_size_bytes, mapping.stop // page_size_bytes
        if first < 0:
            first = start
        elif start - last > gap_pages:
            yield first, last
            first = start
        last = stop
    if first >= 0:
        yield first, last
