"""Shared memory in hands that are easily overlooked: in the inventory and the ledger once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memlens import (
    Inventory,
    PageClass,
    SharedObject,
    SwapLedger,
    explain_page,
    list_shared_memory,
    read_swap_ledger,
)
from memlens.swap.records import SwappedObject
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import CLONE_NEWPID, MAP_SHARED, PAGE, Target, target
from tests.kernel.support.namespaces import CLONE_FILES, CLONE_NEWIPC, start_thread
from tests.kernel.support.shared_memory import counts_of, holders_of, marks_of
from tests.kernel.support.standstill import (
    StillLedger,
    again_if_moved,
    hold_rise,
    read_still_ledger,
)
from tests.kernel.workloads.shm_builder import Builder, Made, Mix, maps_line
from tests.kernel.workloads.shm_holders import OVERLOOKED, UNREACHABLE
from tests.kernel.workloads.shm_namespaces import ELSEWHERE

IN_RAM = (PageClass.PRESENT, PageClass.CACHED, PageClass.PREALLOCATED)
LABELS = [make.__name__ for make in (*OVERLOOKED, *ELSEWHERE)]


@pytest.fixture(scope="module")
def looked(
    swap: str, squeeze: Squeeze, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Made], Inventory, SwapLedger]]:
    """Build everything once, and look at it."""

    def attempt() -> tuple[ExitStack, tuple[dict[str, Made], Inventory, SwapLedger]]:
        with ExitStack() as stack:
            mix = Mix(tmp_path_factory.mktemp("holders"))
            builder = Builder(stack, squeeze, swap, mix)
            made = {make.__name__: make(builder) for make in (*OVERLOOKED, *ELSEWHERE)}
            mix.reprove()
            found = list_shared_memory(), read_swap_ledger()
            mix.reprove()
            return stack.pop_all(), (made, *found)

    stack, result = again_if_moved(attempt)
    with stack:
        yield result


def _is(item: SharedObject | SwappedObject, made: Made) -> bool:
    return (item.device, item.inode, item.size_bytes) == made.key[1:]


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
@pytest.mark.parametrize("label", LABELS)
class TestOverlooked:
    def test_listed_once_with_its_holders(
        self, looked: tuple[dict[str, Made], Inventory, SwapLedger], label: str
    ) -> None:
        made = looked[0][label]
        (item,) = [item for item in looked[1].objects if _is(item, made)]
        holders = {h.pid: (h.mapped_pages, h.is_open) for h in holders_of(looked[1], item)}
        assert (item.kind, holders) == (made.kind, made.holders)
        assert marks_of(item) == made.marks
        assert item.swap_pages == made.out
        assert sum(counts_of(item)[kind] for kind in IN_RAM) == made.resident
        assert made.name in ("", item.name)
        assert not item.reason

    def test_in_the_ledger_once(
        self, looked: tuple[dict[str, Made], Inventory, SwapLedger], label: str
    ) -> None:
        made = looked[0][label]
        found = [item.swap_pages for item in looked[2].objects if _is(item, made)]
        assert found == [made.out]


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
@pytest.mark.parametrize("label", ["removed_and_cut", "segment_without_its_namespace"])
def test_a_segment_that_goes_with_its_one_holder(
    looked: tuple[dict[str, Made], Inventory, SwapLedger], label: str
) -> None:
    made = looked[0][label]
    ((pid, _),) = made.holders.items()
    (item,) = [item for item in looked[1].objects if _is(item, made)]
    assert (item.sole_keeper, item.may_have_more_holders) == (pid, False)
    (row,) = [row for row in looked[2].processes if row.pid == pid]
    assert row.freed_on_exit_pages == row.swap_entries_pages + made.out


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
def test_a_layer_of_an_overlay_is_named(
    looked: tuple[dict[str, Made], Inventory, SwapLedger],
) -> None:
    notes = looked[1].notes
    assert any("is a layer of an overlay" in note for note in notes), notes


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
def test_most_on_swap_comes_first(
    looked: tuple[dict[str, Made], Inventory, SwapLedger],
) -> None:
    """Even before objects that have more in RAM."""
    on_swap = [item.swap_pages for item in looked[2].objects]
    assert on_swap == sorted(on_swap, reverse=True)


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
@pytest.mark.parametrize("make", UNREACHABLE, ids=lambda make: make.__name__)
def test_what_is_out_of_reach_is_in_the_remainder_and_named(
    swap: str,
    make: Callable[[Builder], Made],
    squeeze: Squeeze,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def look() -> StillLedger:
        mix = Mix(tmp_path_factory.mktemp("unreachable"))
        with ExitStack() as stack:
            before = read_still_ledger()
            made = make(Builder(stack, squeeze, swap, mix))
            after = read_still_ledger()
        hold_rise(before, after, made.out)
        return after

    notes = " ".join(again_if_moved(look).ledger.notes)
    for kind in ("registered with io_uring", "namespaces that no process is in"):
        assert kind in notes


def test_holders_of_a_page_are_not_those_of_another_namespace(
    machine: None,
) -> None:
    """The first segment of each IPC namespace has the same device, inode and name."""
    with ExitStack() as stack:
        first, second = stack.enter_context(target()), stack.enter_context(target())
        starts = []
        for driven in (first, second):
            driven.libc("unshare", CLONE_NEWIPC)
            shmid = driven.libc("shmget", 0, 5 * PAGE, 0o1600)
            starts.append(driven.libc("shmat", shmid, None, 0))
            driven.poke(starts[-1], range(5))
        lines = [maps_line(d.pid, s) for d, s in zip((first, second), starts, strict=True)]
        assert lines[0][3:] == lines[1][3:]
        child = first.fork()
        found = explain_page(first.pid, starts[0])
        assert {holder.pid for holder in found.holders} == {first.pid, child.pid}


def test_a_thread_of_a_proc_that_numbers_otherwise(tmp_path: Path) -> None:
    """Tables of descriptors cannot be compared there: those of all threads are read."""
    with target() as driven:
        driven.libc("unshare", CLONE_NEWPID)
        child = driven.fork()
        fd = child.os("memfd_create", "of a thread in a namespace", 1)
        child.os("ftruncate", fd, 11 * PAGE)
        start = child.mmap(11, flags=MAP_SHARED, fd=fd)
        child.poke(start, range(3))
        start_thread(child, CLONE_FILES)
        child.os("close", fd)
        child.libc("munmap", start, 11 * PAGE)
        _mount_own_proc(child, tmp_path)
        proc = f"/proc/{child.pid}/root{tmp_path}"
        name = "memfd:of a thread in a namespace"
        for place, pid in ((proc, 1), ("/proc", child.pid)):
            found = list_shared_memory(proc=place)
            (item,) = [o for o in found.objects if o.name == name]
            assert [(h.pid, h.is_open) for h in holders_of(found, item)] == [(pid, True)]
            assert item.cached_pages == 3


def _mount_own_proc(driven: Target, where: Path) -> None:
    driven.isolate_mounts()
    driven.mount("proc", where)
