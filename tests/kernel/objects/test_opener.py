"""Ways to an object where map_files is not to be had: a descriptor, a path, its name alone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlens import MappingPages, PageClass, explain_page, map_process
from tests.kernel.support.driver import (
    HUGE,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    Target,
    send,
    target,
)
from tests.kernel.support.machine import setting, wait_until
from tests.kernel.support.namespaces import NR_EXIT, start_thread
from tests.kernel.workloads.hugetlb import MFD_HUGETLB, POOL

PAGES = 23


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setenv("MEMLENS_DISABLE", "map_files, cachewalk")
    with target() as made:
        yield made


def mapping_at(pid: int, start: int) -> MappingPages:
    (found,) = [mapping for mapping in map_process(pid).each if mapping.start == start]
    return found


@pytest.mark.parametrize("name", ["ends (deleted)", "back\\012slash", "new\nline"])
def test_a_path_is_tried_as_it_is_and_as_maps_writes_it(
    driven: Target, tmp_path: Path, name: str
) -> None:
    fd = driven.os("open", str(tmp_path / name), os.O_RDWR | os.O_CREAT)
    driven.pwrite(fd, range(PAGES))
    start = driven.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    driven.os("close", fd)
    found = mapping_at(driven.pid, start)
    assert found.counts()[PageClass.CACHED] == PAGES


def test_a_deleted_file_is_not_another_one_of_that_name(driven: Target, tmp_path: Path) -> None:
    path = tmp_path / "name"
    fd = driven.os("open", str(path), os.O_RDWR | os.O_CREAT)
    driven.pwrite(fd, range(PAGES))
    start = driven.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    driven.os("close", fd)
    driven.os("unlink", str(path))
    (tmp_path / "name (deleted)").write_bytes(bytes(PAGES * PAGE))
    path.write_bytes(bytes(PAGES * PAGE))
    assert mapping_at(driven.pid, start).counts()[PageClass.UNKNOWN] == PAGES


def test_descriptors_of_a_live_thread_below_a_zombie(driven: Target) -> None:
    fd = driven.os("memfd_create", "below", 0)
    driven.os("ftruncate", fd, PAGES * PAGE)
    driven.pwrite(fd, range(11))
    start = driven.mmap(PAGES, flags=MAP_SHARED, fd=fd)
    thread = start_thread(driven, 0)
    # Nobody answers this: exit(2) ends one thread.
    send(driven.channel, ("run", ("libc.syscall(number, 0)",), {"values": {"number": NR_EXIT}}))
    stat = Path(f"/proc/{driven.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
    counts = mapping_at(driven.pid, start).counts()
    assert (counts[PageClass.CACHED], counts[PageClass.NONE]) == (11, PAGES - 11)
    steps = explain_page(driven.pid, start).steps
    assert any(step.asked.startswith(f"/proc/{thread}/pagemap") for step in steps)


def test_hugetlb_that_cannot_be_opened_is_no_file_on_disk(driven: Target) -> None:
    with setting(POOL, int(POOL.read_text()) + 2):
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
        private = driven.mmap(HUGE // PAGE, flags=flags, align=HUGE)
        fd = driven.os("memfd_create", "huge", MFD_HUGETLB)
        driven.os("ftruncate", fd, HUGE)
        shared = driven.mmap(HUGE // PAGE, flags=MAP_SHARED, fd=fd, align=HUGE)
        driven.os("close", fd)
        for start in (private, shared):
            assert mapping_at(driven.pid, start).object == "hugetlb"
        driven.libc("munmap", private, HUGE)
        driven.libc("munmap", shared, HUGE)
