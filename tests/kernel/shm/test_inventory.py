"""The inventory of shared memory: every object once, with its pages and its holders."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memlens import Inventory, PageClass, list_shared_memory, read_swap_ledger
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import MAP_SHARED, MNT_DETACH, PAGE, Target, target
from tests.kernel.support.namespaces import mount_tmpfs
from tests.kernel.support.shared_memory import counts_of, holders_of, marks_of
from tests.kernel.support.standstill import again_if_moved, standing_still
from tests.kernel.workloads import shm_mix
from tests.kernel.workloads.shm_builder import Builder, Mix, segment_columns

ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
IN_RAM = (PageClass.PRESENT, PageClass.CACHED, PageClass.PREALLOCATED)
ON_SWAP_CLASSES = (PageClass.SWAPPED, PageClass.SWAP_CACHED)
CLONE_NEWPID = 0x20000000


@pytest.fixture(scope="module")
def looked(
    swap: str, squeeze: Squeeze, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Mix, Inventory, Inventory]]:
    """Build the mix; the inventory before, and while it stands."""

    def attempt() -> tuple[ExitStack, tuple[Mix, Inventory, Inventory]]:
        directory = tmp_path_factory.mktemp("mix")
        with ExitStack() as stack:
            before = list_shared_memory()
            mix = shm_mix.build(stack, squeeze, swap, directory)
            found = again_if_moved(lambda: look(mix))
            return stack.pop_all(), (mix, before, found)

    def look(mix: Mix) -> Inventory:
        with standing_still():
            mix.reprove()
            found = list_shared_memory()
            mix.reprove()
            return found

    stack, result = again_if_moved(attempt)
    with stack:
        yield result


@ON_SWAP
class TestMix:
    """Every object that was built, and nothing else."""

    def test_objects_once_and_nothing_else_new(
        self, looked: tuple[Mix, Inventory, Inventory]
    ) -> None:
        mix, before, found = looked

        def keys(inventory: Inventory) -> list[tuple[str, str, int, int]]:
            return [(o.kind, o.device, o.inode, o.size_bytes) for o in inventory.objects]

        assert len(keys(found)) == len(set(keys(found)))
        ours = {made.key for made in mix.objects}
        assert ours <= set(keys(found)) - set(keys(before))
        # Other programs may make objects meanwhile; none of those is of the mix.
        for item in found.objects:
            key = item.kind, item.device, item.inode, item.size_bytes
            if key not in ours | set(keys(before)):
                holders = {h.pid for h in holders_of(found, item)}
                assert holders - set(mix.pids), item

    def test_pages_names_holders_and_marks(
        self, looked: tuple[Mix, Inventory, Inventory]
    ) -> None:
        mix, _, found = looked
        by_key = {(o.kind, o.device, o.inode, o.size_bytes): o for o in found.objects}
        for made in mix.objects:
            item = by_key[made.key]
            counts = counts_of(item)
            assert sum(counts[kind] for kind in ON_SWAP_CLASSES) == made.out, made
            assert sum(counts[kind] for kind in IN_RAM) == made.resident, made
            assert sum(counts.values()) == made.size_bytes // PAGE, made
            holders = {h.pid: (h.mapped_pages, h.is_open) for h in holders_of(found, item)}
            assert holders == made.holders, made
            assert marks_of(item) == made.marks, made
            if made.name:
                assert item.name == made.name, made
            assert not item.reason, made

    def test_present_is_what_somebody_maps(
        self, looked: tuple[Mix, Inventory, Inventory]
    ) -> None:
        mix, _, found = looked
        by_key = {(o.kind, o.device, o.inode, o.size_bytes): o for o in found.objects}
        for made in mix.objects:
            mapped = set()
            for pid in made.holders:
                mapped |= _mapped_frames(pid, made.device, made.inode)
            counts = counts_of(by_key[made.key])
            assert counts[PageClass.PRESENT] == len(mapped), made
            assert counts[PageClass.CACHED] == made.resident - len(mapped), made

    def test_shmem_of_meminfo_is_explained(
        self, looked: tuple[Mix, Inventory, Inventory]
    ) -> None:
        _, before, found = looked
        # Shmem is summed over CPUs and may lag by a batch of each.
        slack = 2 * 125 * (os.cpu_count() or 1)
        assert abs(_remainder(found) - _remainder(before)) <= slack


def _remainder(found: Inventory) -> int:
    shmem = found.sums["shmem"]
    assert shmem["remainder_pages"] == shmem["total_pages"] - sum(
        item.resident_pages for item in found.objects
    )
    return shmem["remainder_pages"]


def _mapped_frames(pid: int, device: str, inode: int) -> set[int]:
    """Return the offsets in the object of the pages that a process maps now."""
    offsets = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        if fields[3:5] != [device, str(inode)]:
            continue
        start, stop = (int(part, 16) for part in fields[0].split("-"))
        words = oracle.read_pagemap(pid, start, (stop - start) // PAGE).tolist()
        first = int(fields[2], 16) // PAGE
        for page, word in enumerate(words):
            if word & oracle.PRESENT and word & oracle.FILE:
                offsets.add(first + page)
    return offsets


@ON_SWAP
def test_a_detached_segment_is_looked_at_without_touching_it(
    swap: str, squeeze: Squeeze, tmp_path: Path
) -> None:
    """Also its attachment count is as it was; and no page came back from swap."""

    def attempt() -> None:
        with ExitStack() as stack:
            builder = Builder(stack, squeeze, swap, Mix(tmp_path))
            shm_mix.segment_of_nobody(builder)
            (made,) = builder.mix.objects
            before = segment_columns(None, made.inode)
            assert before == (0, 3, 31)
            with standing_still():
                (item,) = [
                    item
                    for item in list_shared_memory().objects
                    if (item.kind, item.inode) == ("sysv", made.inode)
                ]
                ledger = read_swap_ledger()
            assert segment_columns(None, made.inode) == before
            assert item.cached_pages == 3
            assert [o.swap_pages for o in ledger.objects if o.inode == made.inode] == [31]

    again_if_moved(attempt)


# Without swap from here on


@pytest.fixture
def driven() -> Iterator[Target]:
    """Start a target."""
    with target() as made:
        yield made


def _objects_below(found: Inventory, where: Path) -> dict[str, int]:
    """Return the allocated pages of files by their names; idle ones may go to swap."""
    prefix = f"{where}/"
    return {
        item.name.removeprefix(prefix): item.resident_pages + item.swap_pages
        for item in found.objects
        if item.name.startswith(prefix)
    }


def test_names_are_raw(tmp_path: Path, driven: Target) -> None:
    names = ["a\nb", "\x1b[31mred\x1b[0m", "back\\012slash", "x (deleted)", "é\udcff", "  "]
    with ExitStack() as stack:
        where = tmp_path / "names\n"
        where.mkdir()
        mount_tmpfs(stack, where)
        for name in names:
            (where / name).write_bytes(b"x" * PAGE)
        # One is mapped, one is open, the others are only there.
        first = driven.os("open", os.fsencode(where / names[0]), os.O_RDWR)
        driven.mmap(1, flags=MAP_SHARED, fd=first)
        driven.os("close", first)
        driven.os("open", os.fsencode(where / names[1]), os.O_RDWR)
        fd = driven.os("memfd_create", "mem\nfd\x1b[2J", 1)
        driven.os("ftruncate", fd, PAGE)
        driven.mmap(1, flags=MAP_SHARED, fd=fd)
        found = list_shared_memory()
        driven.end()
    assert _objects_below(found, where) == dict.fromkeys(names, 1)
    assert "memfd:mem\nfd\x1b[2J" in {item.name for item in found.objects}


def test_a_file_called_deleted_is_not(tmp_path: Path, driven: Target) -> None:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        path = tmp_path / "file (deleted)"
        path.write_bytes(b"x" * PAGE)
        fd = driven.os("open", str(path), os.O_RDWR)
        driven.mmap(1, flags=MAP_SHARED, fd=fd)
        (item,) = [o for o in list_shared_memory().objects if o.name.startswith(str(path))]
        assert (item.name, item.marks) == (str(path), "")
        path.unlink()
        (item,) = [o for o in list_shared_memory().objects if o.name.startswith(str(path))]
        assert (item.name, item.marks) == (str(path), "deleted")
        driven.end()


def test_ten_thousand_files(tmp_path: Path) -> None:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path, "nr_inodes=20000")
        for number in range(100):
            (tmp_path / f"{number}").mkdir()
            for inner in range(100):
                (tmp_path / f"{number}" / f"{inner}").write_bytes(b"x" * (inner % 3))
        found = list_shared_memory()
    sizes = _objects_below(found, tmp_path)
    assert len(sizes) == 10_000
    assert sum(sizes.values()) == sum(1 for inner in range(100) if inner % 3) * 100
    assert found.cost.wall_s < 20


def test_sparse_and_preallocated_and_empty(tmp_path: Path) -> None:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        (tmp_path / "empty").touch()
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate(1 << 40)
            os.pwrite(file.fileno(), b"x", 1 << 39)
        with (tmp_path / "preallocated").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 7 * PAGE)
        found = {item.name: item for item in list_shared_memory().objects}
    empty, sparse, full = (
        found[str(tmp_path / name)] for name in ("empty", "sparse", "preallocated")
    )
    assert sum(counts_of(empty).values()) == 0
    assert sparse.cached_pages == 1
    assert sparse.none_pages == (1 << 40) // PAGE - 1
    assert full.preallocated_pages == 7


def test_a_tmpfs_under_another_mount_is_missed_not_wrong(tmp_path: Path) -> None:
    """Nothing reaches its files by name: the remainder has them, and a line says so."""
    before = list_shared_memory()
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        (tmp_path / "hidden").write_bytes(bytes(3001 * PAGE))
        mount_tmpfs(stack, tmp_path)
        (tmp_path / "visible").write_bytes(bytes(5 * PAGE))
        found = list_shared_memory()
    assert _objects_below(found, tmp_path) == {"visible": 5}
    assert str(tmp_path) in " ".join(missed.what for missed in found.missed)
    slack = 2 * 125 * (os.cpu_count() or 1)
    assert abs(_remainder(found) - _remainder(before) - 3001) <= slack


def test_a_covered_file_that_is_mapped_is_found(tmp_path: Path, driven: Target) -> None:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        (tmp_path / "covered").write_bytes(bytes(5 * PAGE))
        fd = driven.os("open", str(tmp_path / "covered"), os.O_RDWR)
        driven.mmap(5, flags=MAP_SHARED, fd=fd)
        mount_tmpfs(stack, tmp_path)
        found = _objects_below(list_shared_memory(), tmp_path)
        driven.end()
    assert found == {"covered": 5}


def test_one_tmpfs_at_two_places_and_in_two_namespaces(tmp_path: Path, driven: Target) -> None:
    with ExitStack() as stack:
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        mount_tmpfs(stack, one)
        (one / "file").write_bytes(bytes(5 * PAGE))
        assert oracle.libc.mount(bytes(one), bytes(two), None, 4096, None) == 0
        stack.callback(lambda: oracle.libc.umount2(bytes(two), MNT_DETACH))
        driven.isolate_mounts()
        inode = (one / "file").stat().st_ino
        device = os.stat(one).st_dev
        key = f"{os.major(device):02x}:{os.minor(device):02x}", inode
        found = [o for o in list_shared_memory().objects if (o.device, o.inode) == key]
        driven.end()
    assert len(found) == 1
    assert found[0].marks == "no_holder"


def test_processes_of_another_pid_namespace(tmp_path: Path, driven: Target) -> None:
    driven.libc("unshare", CLONE_NEWPID)
    child = driven.fork()
    fd = child.os("memfd_create", "in a namespace", 1)
    child.os("ftruncate", fd, 11 * PAGE)
    start = child.mmap(11, flags=MAP_SHARED, fd=fd)
    child.poke(start, range(3))
    found = list_shared_memory()
    (item,) = [o for o in found.objects if o.name == "memfd:in a namespace"]
    holders = [(h.pid, h.mapped_pages, h.is_open) for h in holders_of(found, item)]
    assert holders == [(child.pid, 11, True)]
    assert item.sole_keeper == child.pid


def test_a_budget_that_is_spent(driven: Target) -> None:
    found = list_shared_memory(budget_s=1e-9)
    assert not found.is_complete
    assert any("budget" in missed.reason for missed in found.missed)


def test_progress_ends_at_the_end() -> None:
    steps: list[tuple[int, int]] = []
    list_shared_memory(on_progress=lambda done, total: steps.append((done, total)))
    assert steps
    assert all(done <= total for done, total in steps)
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps, key=lambda step: step[0])
