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

from memlens.kernel.kpage import PIECE_PFNS, KpageFile
from memlens.kernel.procfs import raise_errno

# Reading over a gap of so many frames costs less than another read.
GAP_PFNS = 6

_WORD_BYTES = 8
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
    words = _read_spans(file, firsts.tolist(), begins.tolist())
    if len(words) == len(pfns) and bool((np.diff(pfns) > 0).all()):
        return words
    lengths = np.diff(np.append(heads, len(pfns)))
    found: NDArray[np.uint64] = words[pfns - np.repeat(firsts - begins[:-1], lengths)]
    return found


def _read_spans(file: KpageFile, firsts: list[int], begins: list[int]) -> NDArray[np.uint64]:
    words = np.empty(begins[-1], np.uint64)
    raw = words.data.cast("B")
    fd, short = file.fd, []
    try:
        for number, pfn in enumerate(firsts):
            begin, stop = begins[number] * _WORD_BYTES, begins[number + 1] * _WORD_BYTES
            place = pfn * _WORD_BYTES - begin
            while begin < stop:
                end = min(begin + PIECE_PFNS * _WORD_BYTES, stop)
                got = _read(fd, raw[begin:end], place + begin)
                if got < end - begin:
                    short.append((begin + got, end))
                begin = end
    except OSError as error:
        raise_errno(error, f"cannot read {file.name}", file.path)
    for begin, end in short:
        beyond = _NO_PAGE if file.name == "kpageflags" else 0
        words[begin // _WORD_BYTES : end // _WORD_BYTES] = beyond
    file.meter.read_bytes += len(raw)
    file.meter.used.add(file.name)
    return words


def _read(fd: int, piece: memoryview, position: int) -> int:
    """Return the bytes read, 0 beyond physical memory."""
    try:
        return os.preadv(fd, [piece], position)
    except OverflowError:
        return 0
    except OSError as error:
        # Some kernels refuse to start beyond physical memory instead of ending there.
        if error.errno in _BEYOND:
            return 0
        raise
