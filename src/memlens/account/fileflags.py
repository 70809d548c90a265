"""Cached pages of files by combination of flags."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.flagworkers import FlagCounts
from memlens.account.follow import Progress, Stop
from memlens.errors import AccessDenied
from memlens.kernel import features
from memlens.kernel.cachedframes import CachedFile
from memlens.kernel.kpage import KpageFile
from memlens.kernel.kpagebatch import read_sorted
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.flags import join_words
from memlens.pages.wordcounts import WordCounts


def count_file_flags(
    paths: Sequence[str],
    *,
    offsets: tuple[int, int] | None = None,
    proc: str = "/proc",
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> FlagCounts:
    """
    Count the pages of files that are in RAM, by their flags.

    :param offsets: only this half-open range of offsets, in bytes.
    :param on_progress: called with pages done and in all, 0 if that is not known.
    :param should_stop: asked between pieces; True ends the count.
    :raises MemlensError: if a file cannot be looked at.
    :raises AccessDenied: if frames are hidden from this reader.

    Each cached page is mapped here for a moment; see ``kernel.cachedframes``.
    """
    counts, moved = WordCounts(), 0
    raise_if_hidden(proc)
    is_stopped = False
    with KpageFile("kpageflags", proc) as flags:
        for path in paths:
            with CachedFile(path) as file:
                for piece in iter_file_flags(file, flags, offsets):
                    counts.add(piece.joined[piece.is_same])
                    moved += int((~piece.is_same).sum())
                    if on_progress is not None:
                        on_progress(piece.stop, file.pages)
                    if should_stop is not None and should_stop():
                        is_stopped = True
                        break
    words, pages = counts.totals()
    return FlagCounts(
        page_size_bytes=features.page_size_bytes(),
        words=words,
        pages=pages,
        moved_pages=moved,
        is_complete=not is_stopped,
    )


def raise_if_hidden(proc: str) -> None:
    """
    Raise if this reader does not see page frames.

    :raises AccessDenied: saying what would be enough.
    """
    if not features.is_pfn_visible():
        path = f"{proc}/self/pagemap"
        raise AccessDenied("page frames are hidden", path=path, needs="CAP_SYS_ADMIN")


class FilePiece(NamedTuple):
    """
    Cached pages of a piece of a file, ``(n,)`` each.

    :param stop: page after the piece.
    :param place: page in the file, int64.
    :param pfn: frame, int64.
    :param joined: joined words, uint64.
    :param is_same: which still had this frame after its flags were read, bool.
    """

    stop: int
    place: NDArray[np.int64]
    pfn: NDArray[np.int64]
    joined: NDArray[np.uint64]
    is_same: NDArray[np.bool_]


def iter_file_flags(
    file: CachedFile, flags: KpageFile, offsets: tuple[int, int] | None
) -> Iterator[FilePiece]:
    """Yield the cached pages of a file, piece by piece."""
    size = file.page_size_bytes
    first, stop = 0, None
    if offsets is not None:
        first, stop = offsets[0] // size, -(-offsets[1] // size)
    for page, words in file.iter_words(first, stop):
        present = np.flatnonzero(words & PM_PRESENT)
        kept = words[present]
        pfns = (kept & PM_PFN).view(np.int64)
        order = np.argsort(pfns)
        found = np.empty(len(pfns), np.uint64)
        found[order] = read_sorted(flags, pfns[order])
        _, again = next(file.iter_words(page, page + len(words)))
        yield FilePiece(
            page + len(words),
            present + page,
            pfns,
            join_words(found, kept),
            again[present] == kept,
        )
