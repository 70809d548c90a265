"""
Words of /proc/kpageflags and its siblings for very many frames at once.

Documentation/admin-guide/mm/pagemap.rst.  The kernel makes each word on its own, 0.1 us
or more; a read from Python costs another 0.8 us, so frames near each other are read with
one call, and gaps between them read over.
"""

import errno
import os

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.kpage import KPAGE_NEEDS, PIECE_PFNS, KpageFile
from memlens.kernel.procfs import raise_errno

# Reading over a gap of so many frames costs less than another read.
GAP_PFNS = 6

_WORD_BYTES = 8
_PIECE_BYTES = PIECE_PFNS * _WORD_BYTES
_NO_PAGE = 1 << 20  # KPF_NOPAGE
_BEYOND = (errno.EINVAL, errno.EFAULT, errno.ENXIO)


def read_sorted(file: KpageFile, pfns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """
    Return the word of each of these frames.

    :param pfns: ``(n,)`` int64, sorted, repeated or not.
    :return: ``(n,)`` uint64; beyond physical memory as for a frame without a page.
    :raises MemlensError: as ``raise_errno`` tells.
    """
    if not len(pfns):
        return np.empty(0, np.uint64)
    heads = np.append(0, np.flatnonzero(np.diff(pfns) > GAP_PFNS + 1) + 1)
    firsts = pfns[heads]
    spans = pfns[np.append(heads[1:], len(pfns)) - 1] - firsts + 1
    begins = np.append(0, np.cumsum(spans))
    words = np.empty(int(begins[-1]), np.uint64)
    read_spans(file, firsts, begins, words)
    if len(words) == len(pfns) and bool((np.diff(pfns) > 0).all()):
        return words
    lengths = np.diff(np.append(heads, len(pfns)))
    found: NDArray[np.uint64] = words[pfns - np.repeat(firsts - begins[:-1], lengths)]
    return found


def read_spans(
    file: KpageFile,
    firsts: NDArray[np.int64],
    begins: NDArray[np.int64],
    words: NDArray[np.uint64],
) -> None:
    """
    Fill ``words`` with those of ranges of frames, one after the other.

    :param firsts: first frame of each range, ``(n,)`` int64.
    :param begins: where each begins in ``words``, and the end of the last, ``(n + 1,)``.
    :raises MemlensError: as ``raise_errno`` tells.
    """
    raw = words.data.cast("B")
    fd, short, preadv = file.fd, [], os.preadv
    begin, begin_list = 0, (begins[1:] * _WORD_BYTES).tolist()
    # Thousands of short reads: nothing in this loop is a call that need not be one.
    for position, stop in zip((firsts * _WORD_BYTES).tolist(), begin_list, strict=True):
        while begin < stop:
            end = stop if stop - begin <= _PIECE_BYTES else begin + _PIECE_BYTES
            try:
                got = preadv(fd, (raw[begin:end],), position)
            except (OSError, OverflowError) as error:
                _raise_unless_beyond(error, file)
                got = 0
            if got < end - begin:
                short.append((begin + got, end))
            position += end - begin
            begin = end
    for begin, end in short:
        beyond = _NO_PAGE if file.name == "kpageflags" else 0
        words[begin // _WORD_BYTES : end // _WORD_BYTES] = beyond
    file.meter.read_bytes += begin_list[-1] if begin_list else 0
    file.meter.used.add(file.name)


def _raise_unless_beyond(error: OSError | OverflowError, file: KpageFile) -> None:
    """Raise what reading gave, but for a position beyond physical memory."""
    # Some kernels refuse to start there instead of reading nothing.
    if isinstance(error, OSError) and error.errno not in _BEYOND:
        raise_errno(error, f"cannot read {file.name}", file.path, KPAGE_NEEDS)
