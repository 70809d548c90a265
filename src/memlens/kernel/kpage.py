"""
/proc/kpageflags, kpagecount and kpagecgroup: one 64-bit word for every page frame.

Documentation/admin-guide/mm/pagemap.rst.  PFNs come from pagemap, which hides them
(gives 0) from readers without CAP_SYS_ADMIN: leave those out before asking here.
"""

import errno
import os
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from memlens.errors import Unsupported
from memlens.kernel.procfs import Host, raise_errno

KPAGE_FILES = ("kpageflags", "kpagecount", "kpagecgroup")
KPAGE_NEEDS = "root, or CAP_DAC_READ_SEARCH"

# The kernel makes every word on its own, 0.1 to 0.2 us each: a read of 64 KiB is about 1 ms.
PIECE_PFNS = 8192

# Reading over a gap of so many frames costs less than another system call.
GAP_PFNS = 16
_WORD_BYTES = 8
_PFN_LIMIT = 1 << 55
_NO_PAGE = np.uint64(1 << 20)  # KPF_NOPAGE
_LACKS = {
    "kpageflags": "CONFIG_PROC_PAGE_MONITOR",
    "kpagecount": "CONFIG_PROC_PAGE_MONITOR",
    "kpagecgroup": "CONFIG_PROC_PAGE_MONITOR and CONFIG_MEMCG",
}


class KpageFile:
    """
    One of the three files, open.

    :param name: ``kpageflags``, ``kpagecount`` or ``kpagecgroup``.
    :param host: whose file it is; its meter counts what is read.
    :raises AccessDenied: if this user may not open it: mode 0400, owner root.
    :raises Unsupported: if this kernel has no such file.
    :raises ValueError: for another name.

    Frames change hands while they are read.  A word is true for the moment of its read,
    and says what the frame is, not that it is still the page that pagemap named.
    """

    def __init__(self, name: str, host: Host) -> None:
        if name not in KPAGE_FILES:
            raise ValueError(f"not one of {', '.join(KPAGE_FILES)}: {name!r}")
        self.name = name
        self.path = f"{host.root}/{name}"
        self.host = host
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            message = f"this kernel has no {name} ({_LACKS[name]})"
            raise Unsupported(message, path=self.path) from error
        except OSError as error:
            self._raise(error)
        self._raise_if_masked()

    def __enter__(self) -> "KpageFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read_range(self, first_pfn: int, pages: int) -> NDArray[np.uint64]:
        """
        Return the words of consecutive frames, read in pieces of 64 KiB.

        :return: ``(m,)`` uint64, ``m <= pages``: shorter where physical memory ends.
        :raises MemlensError: as ``raise_errno`` tells.
        """
        words = np.empty(pages, np.uint64)
        done = 0
        for pfn, piece in self.iter_range(first_pfn, pages):
            words[pfn - first_pfn : pfn - first_pfn + len(piece)] = piece
            done += len(piece)
        return words[:done]

    def iter_range(
        self, first_pfn: int, pages: int, piece_pfns: int = PIECE_PFNS
    ) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """
        Yield ``(pfn, words)`` piece by piece; the array is used again for the next.

        :param piece_pfns: how many at once; all memory is read faster in larger pieces.

        Ends early where physical memory ends.
        """
        buffer = np.empty(min(pages, piece_pfns), np.uint64)
        for pfn in range(first_pfn, first_pfn + pages, piece_pfns):
            piece = buffer[: first_pfn + pages - pfn]
            got = self._read_piece(piece, pfn)
            if got:
                yield pfn, piece[:got]
            if got < len(piece):
                return

    def read_pfns(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """
        Return the word of each of these frames, in any order, repeated or not.

        :param pfns: ``(n,)`` uint64.
        :return: ``(n,)`` uint64.  Beyond physical memory: what the kernel says of a frame
            without a page, ``KPF_NOPAGE`` in kpageflags and 0 in the others.
        :raises MemlensError: as ``raise_errno`` tells.
        """
        wanted, places = np.unique(pfns, return_inverse=True)
        found = np.full(
            len(wanted), _NO_PAGE if self.name == "kpageflags" else 0, dtype=np.uint64
        )
        runs = merge_pfns(wanted)
        starts = np.searchsorted(wanted, runs[:, 0])
        stops = np.searchsorted(wanted, runs[:, 1])
        for (first, stop), begin, end in zip(runs.tolist(), starts, stops, strict=True):
            words = self.read_range(first, stop - first)
            offsets = (wanted[begin:end] - np.uint64(first)).astype(np.int64)
            is_there = offsets < len(words)
            found[begin:end][is_there] = words[offsets[is_there]]
        return found[places.reshape(-1)]

    def _read_piece(self, piece: NDArray[np.uint64], pfn: int) -> int:
        if pfn >= _PFN_LIMIT:
            return 0
        try:
            got = os.preadv(self.fd, [piece.data], pfn * _WORD_BYTES)
        except OSError as error:
            # Some kernels refuse to start beyond physical memory instead of ending there.
            if error.errno in (errno.EINVAL, errno.EFAULT, errno.ENXIO):
                return 0
            self._raise(error)
        # No time: these files take no lock of any process, and the meter's longest read
        # is about that lock.
        self.host.meter.read_bytes += got
        self.host.meter.used.add(self.name)
        return got // _WORD_BYTES

    def _raise_if_masked(self) -> None:
        """Raise where a container has something empty mounted over the file."""
        try:
            if os.pread(self.fd, _WORD_BYTES, 0):
                return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EFAULT, errno.ENXIO):
                self.close()
                self._raise(error)
            return
        self.close()
        raise Unsupported(f"{self.name} is empty: masked, as in a container", path=self.path)

    def _raise(self, error: OSError) -> NoReturn:
        raise_errno(error, f"cannot read {self.name}", self.path, KPAGE_NEEDS)


def merge_pfns(pfns: NDArray[np.uint64], gap_pfns: int = GAP_PFNS) -> NDArray[np.int64]:
    """
    Return the ranges that cover sorted PFNs, small gaps read over.

    >>> merge_pfns(np.array([1, 2, 3, 9, 500], dtype=np.uint64)).tolist()
    [[1, 10], [500, 501]]

    :param pfns: ``(n,)`` uint64, sorted, below 2**63.
    :param gap_pfns: frames between two ranges that are read rather than skipped.
    :return: ``(m, 2)`` int64, half-open ranges, in order.
    """
    if not len(pfns):
        return np.empty((0, 2), np.int64)
    numbers = pfns.astype(np.int64)
    breaks = np.flatnonzero(np.diff(numbers) > gap_pfns + 1)
    first = numbers[np.concatenate(([0], breaks + 1))]
    last = numbers[np.concatenate((breaks, [len(numbers) - 1]))]
    return np.stack((first, last + 1), axis=1)


def read_kpageflags(pfns: NDArray[np.uint64], host: Host) -> NDArray[np.uint64]:
    """
    Return the flags of frames; see ``KpageFile.read_pfns``.

    :raises AccessDenied: if this user may not open the file.
    :raises Unsupported: if this kernel has no such file.
    """
    with KpageFile("kpageflags", host) as file:
        return file.read_pfns(pfns)


def read_kpagecount(pfns: NDArray[np.uint64], host: Host) -> NDArray[np.uint64]:
    """
    Return how often frames are mapped; see ``KpageFile.read_pfns``.

    :raises AccessDenied: if this user may not open the file.
    :raises Unsupported: if this kernel has no such file.

    Kernels with CONFIG_NO_PAGE_MAPCOUNT give averages for pages of large folios.
    """
    with KpageFile("kpagecount", host) as file:
        return file.read_pfns(pfns)


def read_kpagecgroup(pfns: NDArray[np.uint64], host: Host) -> NDArray[np.uint64]:
    """
    Return the inodes of the memory cgroups that frames are charged to, 0 for none.

    :raises AccessDenied: if this user may not open the file.
    :raises Unsupported: if this kernel has no such file.
    """
    with KpageFile("kpagecgroup", host) as file:
        return file.read_pfns(pfns)


# Words of /proc/kpageflags and its siblings for very many frames at once.
#
# Documentation/admin-guide/mm/pagemap.rst.  The kernel makes each word on its own, 0.1 us or
# more; a read from Python costs another 0.8 us, so frames near each other are read with one
# call, and gaps between them read over.


# Reading over a gap of so many frames costs less than another read.
BATCH_GAP_PFNS = 6
_PIECE_BYTES = PIECE_PFNS * _WORD_BYTES
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
    heads = np.append(0, np.flatnonzero(np.diff(pfns) > BATCH_GAP_PFNS + 1) + 1)
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
    file.host.meter.read_bytes += begin_list[-1] if begin_list else 0
    file.host.meter.used.add(file.name)


def _raise_unless_beyond(error: OSError | OverflowError, file: KpageFile) -> None:
    """Raise what reading gave, but for a position beyond physical memory."""
    # Some kernels refuse to start there instead of reading nothing.
    if isinstance(error, OSError) and error.errno not in _BEYOND:
        raise_errno(error, f"cannot read {file.name}", file.path, KPAGE_NEEDS)
