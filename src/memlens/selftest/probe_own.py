"""
Probes of our own memory: page table, page frames, what an open object says; swap areas.

Documentation/admin-guide/mm/pagemap.rst, userfaultfd.rst, idle_page_tracking.rst,
filesystems/proc.rst; lseek(2), mincore(2).  Each returns what its round trip showed, or
raises why there is nothing to show.
"""

import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel.cachewalk import walker
from memlens.kernel.frameslots import FrameSlotReader
from memlens.kernel.kpage import KpageFile
from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.mounts import parse_mounts
from memlens.kernel.pagemap import PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED
from memlens.kernel.procfs import decode_bytes, raise_errno, read_file
from memlens.kernel.smaps import parse_smaps
from memlens.kernel.swaps import read_swap
from memlens.objects.backing import Backing
from memlens.objects.references import read_message_descriptors
from memlens.pages.bits import (
    PM_GUARD_REGION,
    PM_PFN,
    PM_PRESENT,
    PM_UFFD_WP,
)
from memlens.pages.flags import KPF_ANON, mask_of
from memlens.selftest.memory import (
    FEATURE_PAGEFAULT_FLAG_WP,
    FEATURE_WP_ASYNC,
    FEATURE_WP_UNPOPULATED,
    MADV_GUARD_INSTALL,
    Region,
    UserFault,
)
from memlens.selftest.probe_ground import Ground, expect, open_file, read_text

_WRITTEN = 1 << 1
_GUARD = 1 << 8


def ask_pagemap(ground: Ground) -> str:
    """A page that was written is present, one that was not is empty."""
    with ground.pages(2) as pages:
        pages.part(0, 1).write()
        words = ground.words(pages)
    expect(len(words) == 2, "pagemap ends before our own memory")
    expect(bool(words[0] & PM_PRESENT), "a page that was just written does not read present")
    expect(words[1] == 0, "a page that was never touched does not read empty")
    return "a written page reads present, an untouched one empty"


def ask_pagemap_scan(ground: Ground) -> str:
    """The ioctl finds what was touched, and tells the zero page (v6.7)."""
    with ground.pages(3) as pages:
        pages.part(0, 1).write()
        pages.part(1, 1).read()
        any_of = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
        found = _scan(ground, pages, any_of, any_of | PAGE_IS_PFNZERO)
    expect(found[0] == PAGE_IS_PRESENT, "a page that was just written is not found")
    expect(found[2] == 0, "a page that was never touched is found")
    expect(found[1] == PAGE_IS_PRESENT | PAGE_IS_PFNZERO, "the zero page is not told")
    return "finds the page that was written, tells the zero page, leaves out a hole"


def ask_guard(ground: Ground) -> str:
    """A guard region is marked, by bit 58 and by a category."""
    with ground.pages(2) as pages:
        try:
            pages.part(0, 1).advise(MADV_GUARD_INSTALL)
        except OSError as error:
            message = "this kernel has no guard regions, so there are none to tell"
            raise Unsupported(message) from error
        word = ground.words(pages)[0]
        expect(bool(word & PM_GUARD_REGION), "guard regions exist, but pagemap marks none")
        if "pagemap_scan" in ground.machine.disabled:
            return "bit 58 of pagemap marks one"
        try:
            found = _scan(ground, pages, _GUARD, _GUARD)
        except Unsupported:
            return "bit 58 of pagemap marks one; PAGEMAP_SCAN has no category for it"
        expect(found == [_GUARD, 0], "PAGEMAP_SCAN does not find the guard region")
    return "bit 58 of pagemap and PAGEMAP_SCAN mark one"


def ask_smaps(ground: Ground) -> str:
    """Of three shared pages, one written, Rss counts one."""
    with ground.pages(3, is_shared=True) as pages:
        pages.part(1, 1).write()
        path = f"{ground.own}/smaps"
        raw = read_text(path, "smaps of this process")
        for row in parse_smaps(raw, path):
            if row.mapping.start == pages.address:
                rss_bytes = row.size_bytes.get("Rss")
                expect(rss_bytes == ground.machine.page_size_bytes, f"Rss is {rss_bytes}")
                flags = "" if row.vm_flags else "; there are no VmFlags"
                return f"Rss counts the one page of three that was written{flags}"
    raise Unsupported("our own mapping is not in it", path=path)


def ask_map_files(ground: Ground) -> str:
    """The object of a shared anonymous mapping, which has no path, can be opened."""
    with ground.pages(1, is_shared=True) as pages:
        pages.write()
        path = f"{ground.own}/maps"
        mapping = find_mapping(parse_maps(read_text(path, "maps of this process")), pages)
        expect_same_object(
            f"{ground.own}/map_files/{mapping.name}", "entry of map_files", pages
        )
    return "opened our own shared anonymous memory, which has no path, and read it"


def ask_uffd_wp(ground: Ground) -> str:
    """A page that userfaultfd write-protects is marked in pagemap."""
    with ground.pages(1) as pages:
        pages.write()
        with _write_protected(pages, FEATURE_PAGEFAULT_FLAG_WP):
            word = ground.words(pages)[0]
        expect(bool(word & PM_UFFD_WP), "a page that was write-protected is not marked")
    return "a page of our own was write-protected, and pagemap marks it"


def ask_uffd_wp_async(ground: Ground) -> str:
    """A page that is written after it was protected is found, without any handler (v6.7)."""
    with ground.pages(2) as pages:
        pages.write()
        with _write_protected(pages, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED):
            before = _scan(ground, pages, _WRITTEN, _WRITTEN)
            pages.part(1, 1).write()
            after = _scan(ground, pages, _WRITTEN, _WRITTEN)
    expect(before == [0, 0], "pages count as written right after they were protected")
    expect(after == [0, _WRITTEN], "the page that was written is not found")
    return "of two pages of our own, just the one that was written again is found"


def find_mapping(mappings: list[Mapping], pages: Region) -> Mapping:
    """
    Return the mapping that holds memory of our own.

    :raises Unsupported: if there is none.
    """
    for mapping in mappings:
        if mapping.start <= pages.address < mapping.stop:
            return mapping
    raise Unsupported("the mapping is not listed")


def expect_same_object(path: str, what: str, pages: Region) -> None:
    """
    Go on if a path leads to the object of memory of our own.

    :param what: what is at the path, for a person.
    :raises MemlensError: if it does not, or cannot be opened.
    """
    fd = open_file(path, what)
    try:
        is_same = os.pread(fd, len(pages.head()), 0) == pages.head()
    finally:
        os.close(fd)
    expect(is_same, "another object was opened")


def _scan(ground: Ground, pages: Region, any_of: int, wanted: int) -> list[int]:
    """Return the categories of each page, from PAGEMAP_SCAN."""
    found = [0] * pages.pages
    size = ground.machine.page_size_bytes
    with closing(ground.pagemap()) as pagemap:
        for regions in pagemap.scan(pages.first_page, pages.pages, any_of, wanted):
            for start, stop, categories in regions.tolist():
                first, last = (start - pages.address) // size, (stop - pages.address) // size
                found[first:last] = [categories] * (last - first)
    return found


@contextmanager
def _write_protected(pages: Region, features: int) -> Iterator[None]:
    """Hold memory of our own write-protected; closing the descriptor ends that."""
    with _open_userfault() as fault:
        try:
            fault.enable(features)
        except OSError as error:
            raise Unsupported("userfaultfd lacks the feature") from error
        try:
            fault.protect(pages.address, pages.size_bytes)
        except OSError as error:
            raise Unsupported("userfaultfd lacks write-protection") from error
        yield


def _open_userfault() -> UserFault:
    try:
        return UserFault()
    except PermissionError as error:
        raise AccessDenied("userfaultfd is refused") from error
    except OSError as error:
        raise Unsupported(f"userfaultfd: {error.strerror}") from error


# Page frames: PFNs, the kpage files, page_idle; and the list of swap areas.


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
        bool(word & int(KPF_ANON)) and bool(word & int(mask_of("MMAP"))),
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
            pages.part(used, 1).write()
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


def _pfns(ground: Ground, pages: Region) -> list[int]:
    """
    Write every page and return their frames.

    :raises AccessDenied: if they are hidden.
    """
    found: list[int] = (ground.words(pages.write()) & PM_PFN).tolist()
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


# What an open object says: SEEK_DATA, mincore, cachestat, the page-cache walk.


_OTHER_UID = 65534

# Files that every system has, and that few may write.
_COMMON_FILES = ("/proc/self/exe", sys.executable, "/bin/sh", "/etc/passwd", "/etc/hosts")


def ask_seek_data(ground: Ground) -> str:
    """Of three pages, the one that was written is data."""
    with _memfd_with_page_1(ground) as backing:
        extents = backing.data_extents(0, 3).tolist()
    expect(extents == [[1, 2]], f"data is said to be at {extents}, not at page 1 of 3")
    return "on a memfd, data is the one page of three that was written"


def ask_mincore(ground: Ground) -> str:
    """Of three pages, the one that was written is in RAM."""
    with _memfd_with_page_1(ground) as backing:
        found = backing.mincore(0, 3).tolist()
    expect(found == [False, True, False], f"says {found} where one page of three is in RAM")
    return "on a memfd, in RAM is the one page of three that was written"


def ask_cachestat(ground: Ground) -> str:
    """Of three pages, one is in the page cache, and it is the middle one (v6.5)."""
    with _memfd_with_page_1(ground) as backing:
        try:
            found = [backing.cachestat(page, 1) for page in range(3)]
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise AccessDenied("cachestat is refused even on our own memory") from error
            raise Unsupported(f"cachestat: {os.strerror(error.errno or 0)}") from error
    expect(found == [(0, 0), (1, 0), (0, 0)], f"says {found} where one page of three is cached")
    return "on a memfd, cached is the one page of three that was written"


def ask_scm_fds(ground: Ground) -> str:
    """Send a descriptor to ourselves, and see it counted until it is received."""
    one, other = socket.socketpair()
    with one, other:
        path = f"{ground.own}/fdinfo/{other.fileno()}"
        counts = [_count_descriptors(path)]
        socket.send_fds(one, [b"x"], [one.fileno()])
        counts.append(_count_descriptors(path))
    expect(counts == [0, 1], f"{counts} descriptors in a message before and after one was sent")
    return "counts a descriptor that was sent"


def _count_descriptors(path: str) -> int:
    try:
        count = read_message_descriptors(path)
    except OSError as error:
        raise_errno(error, "cannot look at a socket", path)
    if count is None:
        raise Unsupported("fdinfo of sockets has no scm_fds", path=path)
    return count


def ask_unwritable_files(ground: Ground) -> str:
    """
    Past the end of a file nothing is in RAM; to who may not write it, everything is.

    The kernel hides what is cached of a file from those who may neither write nor own it:
    mincore answers 1 for every page (commit 134fca9063ad), and cachestat fails.
    """
    found = _open_of_another(ground)
    if found is None:
        return _trust_capabilities(ground)
    backing, what = found
    with closing(backing):
        # Behind the end, and behind what a file system may have read ahead.
        page = backing.size_pages() + 1
        is_hidden = bool(backing.mincore(page, 1)[0])
    if is_hidden:
        raise AccessDenied(f"mincore calls every page of {what} resident, even past its end")
    return f"mincore is honest past the end of {what}"


def ask_cachewalk(ground: Ground) -> str:
    """The walk finds the one page that was written."""
    with _memfd_with_page_1(ground) as backing:
        try:
            found = walker().walk_fd(backing.fd).index.tolist()
        except OSError as error:
            raise Unsupported(f"the walk failed: {os.strerror(error.errno or 0)}") from error
    expect(found == [1], f"the walk found {found} where page 1 of three is cached")
    return "on a memfd, the walk finds the one page of three that was written"


def _memfd_with_page_1(ground: Ground) -> "closing[Backing]":
    """Hold a new shared-memory object of three pages, of which the middle one is written."""
    backing = ground.memfd(3)
    os.pwrite(backing.fd, b"x", ground.machine.page_size_bytes)
    return closing(backing)


def _trust_capabilities(ground: Ground) -> str:
    if "CAP_FOWNER" in ground.capabilities and ground.reader.is_init_user_namespace:
        return "CAP_FOWNER is effective; not tried, for lack of a file of another owner"
    raise MemlensError("no file of another owner was found to try with")


def _open_of_another(ground: Ground) -> tuple[Backing, str] | None:
    """Open a file that this user neither owns nor, without privilege, may write."""
    backing = ground.memfd(1)
    try:
        os.fchmod(backing.fd, 0)
        os.fchown(backing.fd, _OTHER_UID if ground.reader.uid != _OTHER_UID else 0, -1)
    except OSError:
        backing.close()
    else:
        return backing, "a memfd given to another user"
    for path in _COMMON_FILES:
        fd = _open_unwritable(path)
        if fd >= 0:
            name = os.path.realpath(path)
            return Backing(fd, "file", ground.machine, False, name), name
    return None


def _open_unwritable(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    status = os.fstat(fd)
    is_fit = stat.S_ISREG(status.st_mode) and status.st_uid != os.geteuid()
    if is_fit and not os.access(path, os.W_OK, effective_ids=True):
        return fd
    os.close(fd)
    return -1
