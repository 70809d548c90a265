"""memlens files beside fincore, on files whose state is made and proven here."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memlens.errors import MemlensError
from memlens.objects.leases import LEASED
from memlens.physical.flags import count_file_flags
from memlens.physical.pagecache import read_files
from memlens.physical.records import FileCache
from memlens.scan.machine import Machine
from tests.kernel.support import driver, oracle
from tests.kernel.support.driver import HUGE, MAP_SHARED, PAGE, PROT_READ, Target
from tests.kernel.support.machine import setting
from tests.kernel.workloads.hugetlb import POOL

TRIES = 8
NOBODY = 65534


@pytest.fixture
def target() -> Iterator[Target]:
    with driver.target() as made:
        yield made


def scan(*paths: Path) -> list[FileCache]:
    return list(read_files([str(path) for path in paths], strips=0).files)


def write_file(path: Path, pages: int) -> None:
    with path.open("wb") as file:
        # One call for each, or a large folio holds several, which is dropped as a whole.
        for page in range(pages):
            length = PAGE if page < pages - 1 else PAGE // 2
            os.pwrite(file.fileno(), os.urandom(length), page * PAGE)
        os.fsync(file.fileno())


def drop(path: Path, first: int, pages: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, first * PAGE, pages * PAGE, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def fincore(*paths: Path) -> dict[str, int]:
    if shutil.which("fincore") is None:
        pytest.skip("fincore is not installed")
    command = ["fincore", "--json", "--bytes", "-o", "PAGES,FILE", *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {row["file"]: int(row["pages"]) for row in json.loads(done.stdout)["fincore"]}


def steady(look: Callable[[], object], other: Callable[[], object]) -> tuple[object, object]:
    """Return two answers between which nothing changed: this kernel reclaims all the time."""
    for _ in range(TRIES):
        before, found, after = other(), look(), other()
        if before == after:
            break
    return found, after


def test_cached_pages_are_those_of_fincore(tmp_path: Path) -> None:
    paths = [tmp_path / f"file {number}" for number in range(41)]
    for number, path in enumerate(paths):
        write_file(path, 1 + number * 3 % 37)
        drop(path, 0, number % 5)

    def ours() -> dict[str, int | None]:
        return {row.path: row.cached_pages for row in scan(*paths)}

    found, expected = steady(ours, lambda: fincore(*paths))
    assert found == expected
    assert len(set(fincore(*paths).values())) > 5


def test_mincore_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, 101)
    drop(path, 16, 48)

    def without() -> FileCache:
        monkeypatch.setenv("MEMLENS_DISABLE", "cachestat")
        (row,) = scan(path)
        monkeypatch.delenv("MEMLENS_DISABLE")
        return row

    found, expected = steady(lambda: scan(path)[0].cached_pages, lambda: without().cached_pages)
    assert found == expected
    assert 0 < without().cached_pages < 101
    assert without().dirty_pages is None
    assert without().evicted_pages is None


def test_dirty_pages(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, 23)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"x" * 7 * PAGE, 0)
        assert scan(path)[0].dirty_pages == 7
        os.fsync(file.fileno())
    assert scan(path)[0].dirty_pages == 0


def test_mapped_pages_count_once(tmp_path: Path, target: Target) -> None:
    path = tmp_path / "file"
    write_file(path, 53)
    fd = target.os("open", bytes(path), os.O_RDONLY)
    start = target.mmap(40, protection=PROT_READ, flags=MAP_SHARED, fd=fd, offset_pages=5)
    target.madvise(start, range(40), driver.MADV_RANDOM)
    child = target.fork()
    target.peek(start, [0, 1, 2, 39])
    child.peek(start, [2, 20])
    expected = 0
    for page in range(40):
        words = [oracle.read_pagemap(t.pid, start + page * PAGE, 1)[0] for t in (target, child)]
        expected += any(int(word) & oracle.PRESENT for word in words)
    assert scan(path)[0].mapped_pages == expected >= 5


def test_looking_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "directory" / "file"
    path.parent.mkdir()
    write_file(path, 3)
    for place in (path, path.parent):
        os.utime(place, (1_000_000, 2_000_000_000))
    scan(tmp_path)
    assert [place.stat().st_atime for place in (path, path.parent)] == [1_000_000] * 2


@pytest.mark.parametrize("is_named", [False, True])
def test_a_lease_is_not_broken(tmp_path: Path, is_named: bool) -> None:
    path = tmp_path / "file"
    write_file(path, 3)
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        (row,) = scan(path if is_named else tmp_path)
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    finally:
        os.close(fd)
    assert row.reason == LEASED
    assert row.cached_pages is None


def test_a_lease_is_not_broken_for_flags_either(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, 3)
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(MemlensError, match=LEASED):
            count_file_flags([str(path)], Machine())
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    finally:
        os.close(fd)
    assert count_file_flags([str(path)], Machine()).total_pages == 3


@pytest.mark.parametrize("path", ["/proc", "/proc/self", "/proc/sys/vm", "/sys/kernel"])
def test_file_systems_of_the_kernel_are_not_entered(path: str) -> None:
    report = read_files([path])
    assert len(report.files) == 0
    assert [item.what for item in report.missed] == [path]


def test_a_file_of_the_kernel_is_not_opened() -> None:
    (row,) = read_files(["/proc/self/maps"]).files
    assert "file system of the kernel" in row.reason


@pytest.mark.parametrize("disabled", ["", "cachewalk"])
def test_hugetlbfs_is_told_by_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disabled: str
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", disabled)
    huge, path = HUGE // PAGE, tmp_path / "file"
    with setting(POOL, int(POOL.read_text()) + 3):
        subprocess.run(["mount", "-t", "hugetlbfs", "none", tmp_path], check=True)
        try:
            with open(path, "wb") as file:
                os.truncate(file.fileno(), 5 * HUGE)
                os.posix_fallocate(file.fileno(), HUGE, 2 * HUGE)
            blocks = path.stat().st_blocks * 512
            (row,) = scan(path)
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    assert blocks == 2 * HUGE
    assert row.kind == "hugetlb"
    assert row.cached_pages == (None if disabled else 2 * huge)
    assert row.dirty_pages is None
    assert bool(row.reason) == bool(disabled)


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mknod(tmp_path / "device", 0o20600, os.makedev(1, 5))
    (tmp_path / "link").symlink_to("/")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    writer = subprocess.Popen(
        [sys.executable, "-c", f"open({str(tmp_path / 'pipe')!r}, 'wb')"],
        stderr=subprocess.DEVNULL,
    )
    try:
        report = read_files([str(tmp_path)])
        assert len(report.files) == 0
        assert "devices, pipes and sockets, never opened: 3" in report.notes
        (row,) = scan(tmp_path / "pipe")
        assert row.reason == "a pipe: never opened"
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def test_files_that_vanish_are_counted(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(9)]
    for path in paths:
        write_file(path, 1)

    def unlink(done: int, _total: int) -> None:
        if not done:
            for path in paths:
                path.unlink()

    report = read_files([str(tmp_path)], on_progress=unlink)
    (first,) = report.files
    assert first.cached_pages is not None
    assert "8 files vanished meanwhile" in report.notes


def test_hard_links_count_once(tmp_path: Path) -> None:
    write_file(tmp_path / "one", 5)
    os.link(tmp_path / "one", tmp_path / "other")
    report = read_files([str(tmp_path), str(tmp_path / "one")])
    assert len(report.files) == 1
    assert report.total is not None
    assert report.total.other_names == 2


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    name = "a\x1b[2Jb\nc\udcff"
    write_file(Path(os.fsdecode(os.fsencode(str(tmp_path / name)))), 1)
    done = run("files", str(tmp_path))
    assert "\x1b" not in done
    assert r"a\x1b[2Jb\x0ac" in done
    (row,) = json.loads(run("files", "--json", str(tmp_path)))["tables"]["files"]
    assert row["path"] == str(tmp_path / name)


def test_files_of_a_process(tmp_path: Path, target: Target) -> None:
    write_file(tmp_path / "mapped", 7)
    write_file(tmp_path / "open", 5)
    fd = target.os("open", bytes(tmp_path / "mapped"), os.O_RDONLY)
    start = target.mmap(7, protection=PROT_READ, flags=MAP_SHARED, fd=fd)
    target.os("close", fd)
    target.peek(start, range(7))
    target.os("open", bytes(tmp_path / "open"), os.O_RDONLY)
    memory = target.os("memfd_create", "kept", 0)
    target.os("ftruncate", memory, 4 * PAGE)
    target.pwrite(memory, [0, 2])
    rows = json.loads(run("files", "--json", "--pid", str(target.pid)))["tables"]["files"]
    found = {row["path"]: row for row in rows}
    assert found[str(tmp_path / "mapped")]["mapped_pages"] == 7
    assert found[str(tmp_path / "open")]["size_bytes"] == 5 * PAGE - PAGE // 2
    assert found["/memfd:kept (deleted)"]["cached_pages"] == 2
    assert len(found) == len(rows)


def test_a_file_with_two_device_numbers_is_one(tmp_path: Path, target: Target) -> None:
    """On an overlay of two file systems stat gives a layer's device, maps its own."""
    names = ("lower", "layers", "merged")
    lower, layers, merged = (tmp_path / name for name in names)
    lower.mkdir()
    write_file(lower / "below", 7)
    target.isolate_mounts()
    target.mount("tmpfs", layers)
    for name in ("upper", "work"):
        target.os("mkdir", str(layers / name))
    options = f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work"
    target.mount("overlay", merged, options)
    path = str(merged / "below")
    fd = target.os("open", path, os.O_RDONLY)
    start = target.mmap(7, protection=PROT_READ, flags=MAP_SHARED, fd=fd)
    target.peek(start, range(7))
    status = os.stat(f"/proc/{target.pid}/fd/{fd}")
    lines = Path(f"/proc/{target.pid}/maps").read_text().splitlines()
    (device,) = [line.split()[3] for line in lines if line.endswith(path)]
    assert device != f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    rows = json.loads(run("files", "--json", "--pid", str(target.pid)))["tables"]["files"]
    assert [row["cached_pages"] for row in rows if row["path"] == path] == [7]


def test_the_page_cache_and_what_is_of_no_file(tmp_path: Path) -> None:
    """A file that nobody holds is found in its directory only."""
    path = tmp_path / "large"
    write_file(path, 20_000)
    report = read_files(is_machine=True)
    assert str(path) not in set(report.files.column("path"))
    before = report.sums["page_cache"]
    assert before["explained_pages"] == report.files.column("cached_pages").sum()
    cached = scan(path)[0].cached_pages or 0
    assert before["remainder_pages"] is not None
    assert before["remainder_pages"] >= cached > 10_000


def test_what_an_ordinary_user_may_not_know(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, 3)
    path.chmod(0o644)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    code = f"""
import os
from memlens.physical.pagecache import read_files
from memlens.scan import mappings
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
report = read_files([{str(path)!r}])
(row,) = report.files
print(row.cached_pages, row.reason)
print(report.notes, report.is_all_known)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert done.startswith("None the kernel says it only to the owner")
    assert "page tables of" in done
    assert done.endswith("False\n")


def test_what_was_named_and_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memlens", "files", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"memlens: No such file or directory ({tmp_path}/none)\n"


def test_where_in_a_file_its_pages_are(tmp_path: Path) -> None:
    """Two files of the same name, one after the other: the strip is never of the other."""
    path = tmp_path / "file"
    write_file(path, 96)
    drop(path, 0, 32)
    report = read_files([str(path)])
    (row,) = report.files
    assert [cell.pages for cell in report.strips] == [2] * 48
    assert sum(cell.cached_pages for cell in report.strips) <= 96
    assert {(cell.device, cell.inode) for cell in report.strips} == {(row.device, row.inode)}
    assert any(cell.cached_pages == 2 for cell in report.strips)

    def replace_file(_done: int, _total: int) -> None:
        path.rename(tmp_path / "other")
        write_file(path, 96)

    assert len(read_files([str(path)], on_progress=replace_file).strips) == 0


def test_a_budget_ends_a_walk(tmp_path: Path) -> None:
    for number in range(9):
        write_file(tmp_path / str(number), 1)
    report = read_files([str(tmp_path)], budget_s=1e-9)
    assert not report.is_complete
    assert len(report.files) == 1


def run(*words: str) -> str:
    command = [sys.executable, "-m", "memlens", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
