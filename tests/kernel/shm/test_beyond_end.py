"""Memory of tmpfs that is no page of a file up to its end: counted, or at least named."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from memlens import SharedObject, list_processes, list_shared_memory, read_swap_ledger
from memlens.record import Table
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import FALLOC_FL_KEEP_SIZE, PAGE, Target, target
from tests.kernel.support.machine import wait_until
from tests.kernel.support.namespaces import mount_tmpfs
from tests.kernel.support.shared_memory import counts_of, slots_of
from tests.kernel.support.standstill import again_if_moved, hold_rise, read_still_ledger
from tests.kernel.support.verdicts import can_walk
from tests.kernel.workloads.shm_builder import count_evicted

ON_ZRAM = pytest.mark.parametrize("swap", ["zram"], indirect=True)
PAGES = 1009


@pytest.fixture
def driven() -> Iterator[Target]:
    with target() as driven:
        yield driven


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        yield tmp_path


def _named(name: Path, objects: Table[Any]) -> Any:
    (item,) = [item for item in objects if item.name == str(name)]
    return item


def _beyond_end(item: SharedObject) -> tuple[int, int]:
    return item.beyond_end_resident_pages, item.beyond_end_swapped_pages


def _set_aside(driven: Target, path: Path, pages_inside: int) -> None:
    """Make a file whose pages are set aside, most of them beyond its end."""
    fd = driven.os("open", str(path), os.O_RDWR | os.O_CREAT, 0o600)
    driven.os("ftruncate", fd, pages_inside * PAGE)
    driven.fallocate(fd, range(PAGES), FALLOC_FL_KEEP_SIZE)
    driven.os("close", fd)


# Without cachestat what is set aside inside looks like a hole.
@pytest.mark.parametrize(("pages_inside", "disabled"), [(0, ""), (101, ""), (0, "cachestat")])
def test_what_is_set_aside_beyond_the_end_is_in_ram(
    pages_inside: int,
    disabled: str,
    driven: Target,
    tmpfs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if disabled and not can_walk():
        pytest.skip("only the page-cache walk tells without cachestat")
    path = tmpfs / "file"
    _set_aside(driven, path, pages_inside)
    monkeypatch.setenv("MEMLENS_DISABLE", disabled)
    for name in (None, str(path)):
        item = _named(path, list_shared_memory(name).objects)
        assert item.size_bytes == pages_inside * PAGE
        assert sum(counts_of(item).values()) == pages_inside
        assert _beyond_end(item) == (PAGES - pages_inside, 0)
        assert item.resident_pages == path.stat().st_blocks * 512 // PAGE == PAGES


def test_huge_pages_of_small_files(tmp_path: Path) -> None:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path, "huge=always")
        path = tmp_path / "small"
        path.write_bytes(bytes(10 * PAGE))
        owned = path.stat().st_blocks * 512 // PAGE
        assert owned > 10
        item = _named(path, list_shared_memory().objects)
        assert item.resident_pages == owned
        assert _beyond_end(item) == (owned - 10, 0)


@ON_ZRAM
@pytest.mark.parametrize("pages_inside", [0, 101])
def test_what_is_set_aside_beyond_the_end_is_on_swap(
    swap: str, pages_inside: int, driven: Target, tmpfs: Path, squeeze: Squeeze
) -> None:
    path = tmpfs / "file"
    with squeeze.cgroup() as cgroup:
        with cgroup.charging(driven.pid):
            _set_aside(driven, path, pages_inside)

        def is_out() -> bool:
            cgroup.reclaim()
            return count_evicted(str(path)) == PAGES

        wait_until(is_out, "a file on swap")
        for slots in (False, True):
            ledger = read_swap_ledger(slots=slots)
            item = _named(path, ledger.objects)
            assert item.swap_pages == PAGES
            assert item.beyond_end_swapped_pages == PAGES - pages_inside
            if slots and can_walk():
                assert slots_of(ledger, item) == PAGES


def _link(driven: Target, where: Path) -> None:
    code = "for n in range(count): os.symlink('x' * 200, f'{where}/{n}')"
    driven.run(code, count=PAGES, where=str(where))
    # Another name of one of them, and one that is short enough to own no page.
    driven.os("link", f"{where}/0", f"{where}/again", follow_symlinks=False)
    driven.os("symlink", "x" * 100, f"{where}/short")


def test_a_file_that_was_unlinked(driven: Target, tmpfs: Path) -> None:
    """It has no pages up to its end, and yet its exit frees memory."""
    path = tmpfs / "file"
    _set_aside(driven, path, 0)
    driven.os("open", str(path), os.O_RDONLY)
    (before,) = list_processes([driven.pid]).processes
    path.unlink()
    (after,) = list_processes([driven.pid]).processes
    assert before.freed_on_exit_pages is not None
    assert after.freed_on_exit_pages == before.freed_on_exit_pages + PAGES


def test_targets_of_long_links_are_named(driven: Target, tmpfs: Path) -> None:
    _link(driven, tmpfs)
    notes = [note for note in list_shared_memory().notes if str(tmpfs) in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"tmpfs on {tmpfs}: {PAGES} pages are targets of long symbolic")


@ON_ZRAM
def test_targets_of_long_links_are_in_the_remainder(
    swap: str, tmpfs: Path, squeeze: Squeeze
) -> None:
    def look() -> tuple[str, ...]:
        with target() as driven, squeeze.cgroup() as cgroup:
            before = read_still_ledger()
            with cgroup.charging(driven.pid):
                _link(driven, tmpfs)
            used = oracle.read_vmstat()["pswpout"]

            def is_out() -> bool:
                cgroup.reclaim()
                return oracle.read_vmstat()["pswpout"] - used >= PAGES

            try:
                wait_until(is_out, "links on swap")
                after = read_still_ledger()
                hold_rise(before, after, PAGES)
            finally:
                for name in os.listdir(tmpfs):
                    (tmpfs / name).unlink()
        return after.ledger.notes

    notes = [note for note in again_if_moved(look) if str(tmpfs) in note]
    assert [f"{PAGES} pages are targets of long symbolic links" in note for note in notes] == [
        True
    ]
