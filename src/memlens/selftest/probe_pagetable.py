"""
Probes of the page table: pagemap, PAGEMAP_SCAN, smaps, map_files, userfaultfd.

Documentation/admin-guide/mm/pagemap.rst, userfaultfd.rst, filesystems/proc.rst.
Each returns what its round trip showed, or raises why there is nothing to show.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from memlens.errors import AccessDenied, Unsupported
from memlens.kernel.maps import Mapping, parse_maps, parse_smaps
from memlens.kernel.pagemap import PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED
from memlens.selftest.memory import (
    FEATURE_PAGEFAULT_FLAG_WP,
    FEATURE_WP_ASYNC,
    FEATURE_WP_UNPOPULATED,
    UserFault,
)
from memlens.selftest.probe_ground import (
    PM_PRESENT,
    Ground,
    OwnPages,
    expect,
    open_file,
    read_text,
)

PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_GUARD = 1 << 8
_PM_UFFD_WP = 1 << 57
_PM_GUARD_REGION = 1 << 58
_MADV_GUARD_INSTALL = 102
_PROBE_BYTE = 0x5A


def ask_pagemap(ground: Ground) -> str:
    """A page that was written is present, one that was not is empty."""
    with ground.pages(2) as pages:
        pages.write(0)
        words = [int(word) for word in ground.words(pages)]
    expect(len(words) == 2, "pagemap ends before our own memory")
    expect(bool(words[0] & PM_PRESENT), "a page that was just written does not read present")
    expect(words[1] == 0, "a page that was never touched does not read empty")
    return "a written page reads present, an untouched one empty"


def ask_pagemap_scan(ground: Ground) -> str:
    """The ioctl finds what was touched, and tells the zero page (v6.7)."""
    with ground.pages(3) as pages:
        pages.write(0)
        pages.read(1)
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
            pages.memory.madvise(_MADV_GUARD_INSTALL, 0, ground.machine.page_size_bytes)
        except OSError as error:
            message = "this kernel has no guard regions, so there are none to tell"
            raise Unsupported(message) from error
        word = int(ground.words(pages)[0])
        expect(bool(word & _PM_GUARD_REGION), "guard regions exist, but pagemap marks none")
        if "pagemap_scan" in ground.machine.disabled:
            return "bit 58 of pagemap marks one"
        try:
            found = _scan(ground, pages, PAGE_IS_GUARD, PAGE_IS_GUARD)
        except Unsupported:
            return "bit 58 of pagemap marks one; PAGEMAP_SCAN has no category for it"
        expect(found == [PAGE_IS_GUARD, 0], "PAGEMAP_SCAN does not find the guard region")
    return "bit 58 of pagemap and PAGEMAP_SCAN mark one"


def ask_smaps(ground: Ground) -> str:
    """Of three shared pages, one written, Rss counts one."""
    with ground.pages(3, is_shared=True) as pages:
        pages.write(1)
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
        pages.memory[0] = _PROBE_BYTE
        mapping = find_mapping(
            parse_maps(read_text(f"{ground.own}/maps", "maps of this process")), pages.address
        )
        fd = open_file(f"{ground.own}/map_files/{mapping.name}", "entry of map_files")
        try:
            is_same = os.pread(fd, 1, 0) == bytes([_PROBE_BYTE])
        finally:
            os.close(fd)
    expect(is_same, "another object was opened")
    return "opened our own shared anonymous memory, which has no path, and read it"


def ask_uffd_wp(ground: Ground) -> str:
    """A page that userfaultfd write-protects is marked in pagemap."""
    with ground.pages(1) as pages:
        pages.write(0)
        with _write_protected(pages, FEATURE_PAGEFAULT_FLAG_WP):
            word = int(ground.words(pages)[0])
        expect(bool(word & _PM_UFFD_WP), "a page that was write-protected is not marked")
    return "a page of our own was write-protected, and pagemap marks it"


def ask_uffd_wp_async(ground: Ground) -> str:
    """A page that is written after it was protected is found, without any handler (v6.7)."""
    with ground.pages(2) as pages:
        pages.write(0)
        pages.write(1)
        with _write_protected(pages, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED):
            before = _scan(ground, pages, PAGE_IS_WRITTEN, PAGE_IS_WRITTEN)
            pages.write(1)
            after = _scan(ground, pages, PAGE_IS_WRITTEN, PAGE_IS_WRITTEN)
    expect(before == [0, 0], "pages count as written right after they were protected")
    expect(after == [0, PAGE_IS_WRITTEN], "the page that was written is not found")
    return "of two pages of our own, just the one that was written again is found"


def find_mapping(mappings: list[Mapping], address: int) -> Mapping:
    """
    Return the mapping that holds an address.

    :raises Unsupported: if there is none.
    """
    for mapping in mappings:
        if mapping.start <= address < mapping.stop:
            return mapping
    raise Unsupported("the mapping is not listed")


def _scan(ground: Ground, pages: OwnPages, any_of: int, wanted: int) -> list[int]:
    """Return the categories of each page, from PAGEMAP_SCAN."""
    found = [0] * pages.pages
    pagemap = ground.pagemap()
    try:
        for regions in pagemap.scan(pages.first_page, pages.pages, any_of, wanted):
            for start, stop, categories in regions.tolist():
                for address in range(start, stop, ground.machine.page_size_bytes):
                    found[(address - pages.address) // ground.machine.page_size_bytes] = (
                        categories
                    )
    finally:
        pagemap.close()
    return found


@contextmanager
def _write_protected(pages: OwnPages, features: int) -> Iterator[None]:
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
