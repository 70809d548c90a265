"""
Probes of page frames: PFNs, the kpage files, page_idle; and of the list of swap areas.

Documentation/admin-guide/mm/pagemap.rst, idle_page_tracking.rst.  Each returns what
its round trip showed, or raises why there is nothing to show.
"""

import os

import numpy as np

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel.frameslots import FrameSlotReader
from memlens.kernel.kpage import KpageFile
from memlens.kernel.mounts import parse_mounts
from memlens.kernel.procfs import decode_bytes, read_file
from memlens.kernel.swaps import read_swap
from memlens.selftest.probe_ground import PM_PFN, Ground, OwnPages, expect, open_file

_KPF_MMAP = 1 << 11
_KPF_ANON = 1 << 12
_IDLE_BITMAP = "/sys/kernel/mm/page_idle/bitmap"
_WORD_BITS = 64

# Pages become known to reclaim, and so to page_idle, when a batch of them is full.
_IDLE_PAGES = 64


def ask_pfns(ground: Ground) -> str:
    """Two pages that were written are in two frames."""
    with ground.pages(2) as pages:
        first, second = _pfns(ground, pages)
    expect(first != second, "two pages are said to be in one frame")
    return "two pages of our own have two numbers"


def ask_kpageflags(ground: Ground) -> str:
    """The frame of our own page is anonymous memory and mapped."""
    word = _frame_word(ground, "kpageflags")
    expect(
        bool(word & _KPF_ANON) and bool(word & _KPF_MMAP),
        f"our own page has flags {word:#x}, which are not those of mapped anonymous memory",
    )
    return "our own page has the flags of mapped anonymous memory"


def ask_kpagecount(ground: Ground) -> str:
    """The frame of our own page is mapped once."""
    count = _frame_word(ground, "kpagecount")
    expect(count == 1, f"our own page is said to be mapped {count} times")
    return "our own page is mapped once"


def ask_frameslots(ground: Ground) -> str:
    """Pages of our own lead to one array of frames, in which our own page has no slot."""
    with FrameSlotReader(ground.machine) as reader, ground.pages(1) as pages:
        found = reader.read(np.array(_pfns(ground, pages), np.uint64), [])
    expect(not found.is_cached.any(), "our own page, never swapped, is said to keep a slot")
    return "several pages of our own lead to one array of frames"


def ask_kpagecgroup(ground: Ground) -> str:
    """The frame of our own page is charged to our own memory cgroup."""
    inode = _frame_word(ground, "kpagecgroup")
    expect(inode != 0, "our own page is charged to no cgroup (is the controller off?)")
    own_inode = _memory_cgroup_inode(ground)
    if own_inode == 0:
        return "our own page is charged to a cgroup, which cannot be compared here"
    if inode != own_inode:
        return "our own page is charged to a cgroup, though not to the one we are in now"
    return "our own page is charged to our own cgroup"


def ask_page_idle(ground: Ground) -> str:
    """A page that was marked idle and then written is idle no more; one left alone stays."""
    fd = open_file(_IDLE_BITMAP, "page_idle/bitmap", os.O_RDWR)
    try:
        with ground.pages(_IDLE_PAGES) as pages:
            pfns = _pfns(ground, pages)
            for pfn in pfns:
                _mark_idle(fd, pfn)
            before = [_is_idle(fd, pfn) for pfn in pfns]
            used = before.index(True) if any(before) else -1
            expect(used >= 0, "no page of our own could be marked idle")
            pages.write(used)
            is_idle_still = _is_idle(fd, pfns[used])
    finally:
        os.close(fd)
    expect(not is_idle_still, "a page that was written again still counts as idle")
    return "a page of our own was marked idle, written, and found in use"


def ask_swap_areas(ground: Ground) -> str:
    """The list reads as documented."""
    areas = read_swap(ground.machine).areas
    if not areas:
        return "it is empty: nothing can be swapped out"
    return f"it names {len(areas)} area{'s' if len(areas) > 1 else ''}"


def _pfns(ground: Ground, pages: OwnPages) -> list[int]:
    """
    Write every page and return their frames.

    :raises AccessDenied: if they are hidden.
    """
    for page in range(pages.pages):
        pages.write(page)
    found = [int(word) & PM_PFN for word in ground.words(pages)]
    if len(found) != pages.pages or not all(found):
        raise AccessDenied("pagemap gives 0 in place of page frame numbers and swap slots")
    return found


def _frame_word(ground: Ground, name: str) -> int:
    with KpageFile(name, ground.machine) as file, ground.pages(1) as pages:
        try:
            pfns = _pfns(ground, pages)
        except AccessDenied as error:
            message = f"{name} can be read, but the numbers to look up in it are hidden"
            raise AccessDenied(message, path=file.path) from error
        return int(file.read_pfns(np.array(pfns, np.uint64))[0])


def _memory_cgroup_inode(ground: Ground) -> int:
    """Return the inode of our memory cgroup, 0 if it is not mounted where we can see it."""
    try:
        lines = decode_bytes(read_file(f"{ground.own}/cgroup")).split("\n")
        mounts = parse_mounts(read_file(f"{ground.own}/mountinfo"))
    except OSError:
        return 0
    rows = [fields for line in lines if len(fields := line.split(":", 2)) == 3]
    version_1 = [path for _, names, path in rows if "memory" in names.split(",")]
    version_2 = [path for _, names, path in rows if not names]
    if version_1:
        mounts = [m for m in mounts if m.kind == "cgroup" and "memory" in m.options.split(",")]
    else:
        mounts = [m for m in mounts if m.kind == "cgroup2"]
    for path in version_1 or version_2:
        for mount in mounts:
            inode = _inode(mount.mount_point + path.removeprefix(mount.root.rstrip("/")))
            if inode:
                return inode
    return 0


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _mark_idle(fd: int, pfn: int) -> None:
    # Bits that are 0 in what is written leave their pages as they are.
    word = np.array([1 << pfn % _WORD_BITS], np.uint64)
    try:
        os.pwrite(fd, word.tobytes(), pfn // _WORD_BITS * 8)
    except OSError as error:
        raise Unsupported(f"page_idle: {os.strerror(error.errno or 0)}") from error


def _is_idle(fd: int, pfn: int) -> bool:
    raw = os.pread(fd, 8, pfn // _WORD_BITS * 8)
    if len(raw) < 8:
        raise MemlensError("page_idle ends before our own page", path=_IDLE_BITMAP)
    return bool(int(np.frombuffer(raw, np.uint64)[0]) >> pfn % _WORD_BITS & 1)
