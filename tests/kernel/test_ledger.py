"""The swap ledger against what was built, and against ``Used`` of /proc/swaps."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import raw
import shm_mix
from driver import PAGE
from shm_made import Builder, Made, Mix, used_pages
from slowread import Private, read_private
from swapareas import Squeeze
from workloads.base import StateMoved

from memlens import SwapLedger, read_swap_ledger

ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
# Once swap is on, whatever lies idle on the machine may be pushed out, for a minute or two.
DEADLINE_S = 150
T = TypeVar("T")


def again_if_moved(attempt: Callable[[], T], seconds: float = DEADLINE_S) -> T:
    """Try until nothing else on the machine moved to or from swap meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return attempt()
        except StateMoved:
            continue
    return attempt()


@contextmanager
def standing_still() -> Iterator[None]:
    """Raise StateMoved if a page went to swap or came back in the block."""
    fold_counters()
    before = _swap_counters()
    yield
    if _swap_counters() != before:
        raise StateMoved("something was swapped meanwhile")


@dataclass(frozen=True)
class Bounded:
    """
    A ledger, and by how many pages the machine may have put it out.

    :param moved: pages that went to swap or came back while it was made: each may have been
        seen twice or not at all.
    :param doubtful: pages of others in RAM that keep a slot which another process may hold,
        which memlens leaves to the remainder.
    """

    ledger: SwapLedger
    moved: int
    doubtful: int


def read_bounded_ledger() -> Bounded:
    fold_counters()
    before = _swap_counters()
    ledger = read_swap_ledger()
    after = _swap_counters()
    moved = sum(abs(now - was) for now, was in zip(after, before, strict=True))
    doubts = [note for note in ledger.notes if "may hold" in note]
    return Bounded(ledger, moved, sum(int(note.split()[0]) for note in doubts))


def rise_bound(before: Bounded, after: Bounded) -> int:
    """Return by how much the remainder may have risen on its own: 0 on a quiet machine."""
    return before.moved + after.moved + abs(after.doubtful - before.doubtful)


def fold_counters() -> None:
    """
    Add up the counters that CPUs keep for themselves.

    SwapCached of /proc/meminfo leaves out up to a batch of pages per CPU; memlens looks
    for pages in the swap cache if it is above 0.
    """
    Path("/proc/sys/vm/stat_refresh").write_text("1\n")


def unreadable_pages() -> int:
    """Return the swapped pages of processes whose page tables refuse even root."""
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            os.close(os.open(f"/proc/{name}/pagemap", os.O_RDONLY))
        except PermissionError:
            status = Path(f"/proc/{name}/status").read_text()
            found += sum(
                int(line.split()[1]) * 1024 // PAGE
                for line in status.splitlines()
                if line.startswith("VmSwap:")
            )
        except OSError:
            continue
    return found


def _swap_counters() -> tuple[int, ...]:
    counters = raw.read_vmstat()
    return used_pages(), counters["pswpin"], counters["pswpout"]


@dataclass(frozen=True)
class Seen:
    """What memlens and the kernel said before and after the mix was built."""

    mix: Mix
    private: Private
    first: Bounded
    last: Bounded
    unreadable_before: int
    unreadable: int

    @property
    def before(self) -> SwapLedger:
        return self.first.ledger

    @property
    def after(self) -> SwapLedger:
        return self.last.ledger


def _look(squeeze: Squeeze, swap: str, directory: Path) -> Seen:
    directory.mkdir(exist_ok=True)
    first, lost = read_bounded_ledger(), unreadable_pages()
    with shm_mix.mixed(squeeze, swap, directory) as mix:
        mix.reprove()
        private = read_private(mix.pids)
        last, still_lost = read_bounded_ledger(), unreadable_pages()
        mix.reprove()
        again = read_private(mix.pids)
        if (again.slots, again.cached) != (private.slots, private.cached):
            raise StateMoved("private pages of the mix moved")
        return Seen(mix, private, first, last, lost, still_lost)


@pytest.fixture(scope="module")
def seen(swap: str, squeeze: Squeeze, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Look before and after the mix is built."""
    return again_if_moved(
        lambda: _look(squeeze, swap, tmp_path_factory.mktemp("mix") / "objects")
    )


@ON_SWAP
class TestMix:
    """What the mix added must be there, no more and no less."""

    def test_it_adds_up(self, seen: Seen) -> None:
        for ledger in (seen.before, seen.after):
            sums = (
                *(ledger.private_pages, ledger.shared_pages),
                *(ledger.swap_cache_pages, ledger.remainder_pages),
            )
            assert sum(sums) == ledger.used_pages

    def test_what_was_built_is_attributed_exactly(self, seen: Seen) -> None:
        # Others may go to swap and come back while the mix is built: they are attributed as
        # well, so that the remainder stays as it was, to the page.
        lost = seen.unreadable - seen.unreadable_before
        rise = seen.after.remainder_pages - seen.before.remainder_pages
        assert abs(rise - lost) <= rise_bound(seen.first, seen.last)
        keys = {made.key for made in seen.mix.objects}
        swapped = sum(
            item.swap_pages
            for item in seen.after.objects
            if (item.kind, item.device, item.inode, item.size_bytes) in keys
        )
        assert swapped == seen.mix.objects_out
        assert seen.after.private_pages >= seen.private.distinct_slots

    def test_the_remainder_is_below_a_hundredth(self, seen: Seen) -> None:
        reachable = seen.after.remainder_pages - seen.unreadable
        slack = seen.last.moved + seen.last.doubtful
        assert abs(reachable) <= seen.after.used_pages // 100 + slack
        assert seen.after.missed == seen.before.missed

    def test_processes_have_their_slots(self, seen: Seen) -> None:
        own = {row.pid: row.own_pages for row in seen.after.processes}
        for pid in seen.mix.pids:
            assert own.get(pid, 0) == len(seen.private.slots[pid]), pid
        assert any(seen.private.slots[pid] for pid in seen.mix.family)

    def test_exit_frees_what_no_other_process_holds(self, seen: Seen) -> None:
        freed = {row.pid: row.freed_on_exit_pages for row in seen.after.processes}
        for pid in seen.mix.pids:
            others = set().union(*(s for p, s in seen.private.slots.items() if p != pid))
            private = len(seen.private.slots[pid] - others)
            kept = [
                made.out
                for made in seen.mix.objects
                if list(made.holders) == [pid]
                and (made.kind in ("memfd", "anonymous") or "deleted" in made.marks)
            ]
            assert freed.get(pid, 0) == private + sum(kept), pid

    def test_shares_sum_to_what_is_mapped(self, seen: Seen) -> None:
        shares = {row.pid: row.share_pages for row in seen.after.processes}
        wanted = dict.fromkeys(seen.mix.pids, 0.0)
        for made in seen.mix.objects:
            mappers = [pid for pid, (mapped, _) in made.holders.items() if mapped]
            for pid in mappers:
                wanted[pid] += made.out / len(mappers)
        for pid, share in wanted.items():
            assert shares.get(pid, 0.0) == pytest.approx(share), pid

    def test_objects_once_with_their_holders(self, seen: Seen) -> None:
        found = seen.after.objects
        keys = [(o.kind, o.device, o.inode, o.size_bytes) for o in found]
        assert len(keys) == len(set(keys))
        by_key = dict(zip(keys, found, strict=True))
        for made in seen.mix.objects:
            item = by_key.get(made.key)
            assert item is not None, f"missed: {made}"
            assert item.swap_pages == made.out, made
            holders = {h.pid: (h.mapped_pages, h.is_open) for h in item.holders}
            assert holders == made.holders, made


@ON_SWAP
@pytest.mark.parametrize("make", shm_mix.UNREACHABLE, ids=lambda make: make.__name__)
def test_the_remainder_grows_by_what_is_out_of_reach(
    swap: str,
    make: Callable[[Builder], Made],
    squeeze: Squeeze,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def attempt() -> tuple[Bounded, Bounded, Made, int]:
        mix = Mix(tmp_path_factory.mktemp("unreachable"))
        with ExitStack() as stack:
            before, lost = read_bounded_ledger(), unreadable_pages()
            made = make(Builder(stack, squeeze, swap, mix))
            after, still_lost = read_bounded_ledger(), unreadable_pages()
            return before, after, made, still_lost - lost

    before, after, made, lost = again_if_moved(attempt)
    rise = after.ledger.remainder_pages - before.ledger.remainder_pages
    assert abs(rise - made.out - lost) <= rise_bound(before, after)
    notes = " ".join(after.ledger.notes)
    for kind in ("unread messages", "loop devices", "detached mounts"):
        assert kind in notes


@ON_SWAP
def test_areas_as_the_kernel_lists_them(swap: str) -> None:
    areas = read_swap_ledger().areas
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    assert [(area.path, area.kind) for area in areas] == [(lines[0].split()[0], swap)]
    assert areas[0].size_pages == int(lines[0].split()[2]) * 1024 // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("swap", ["none"], indirect=True)
def test_no_swap_at_all(swap: str) -> None:
    ledger = read_swap_ledger()
    assert ledger.areas == ()
    assert (ledger.used_pages, ledger.remainder_pages) == (0, 0)
    assert ledger.objects == ()
