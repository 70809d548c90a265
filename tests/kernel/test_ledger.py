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
from shm_mix import Made, Mix, Private, used_pages
from swapareas import Squeeze
from workloads.base import StateMoved

from memlens import SwapLedger, read_swap_ledger

ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
# Once swap is on, whatever lies idle on the machine may be pushed out, for a minute or two.
DEADLINE_S = 150
T = TypeVar("T")


def again_if_moved(attempt: Callable[[], T]) -> T:
    """Try until nothing else on the machine moved to or from swap meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
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
    before: SwapLedger
    after: SwapLedger
    used: int
    used_before: int
    unreadable: int


def _look(squeeze: Squeeze, swap: str, directory: Path) -> Seen:
    directory.mkdir(exist_ok=True)
    with standing_still():
        before = read_swap_ledger()
        used_before = used_pages()
    with shm_mix.mixed(squeeze, swap, directory) as mix:
        used = used_pages()
        with standing_still():
            mix.reprove()
            private = shm_mix.read_private(mix.pids)
            after = read_swap_ledger()
            mix.reprove()
        made = mix.objects_out + private.distinct_slots + len(private.cached)
        if used - used_before != made:
            raise StateMoved(f"Used rose by {used - used_before}, built {made}")
        return Seen(mix, private, before, after, used, used_before, unreadable_pages())


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
        assert seen.after.used_pages == seen.used

    def test_what_was_built_is_attributed_exactly(self, seen: Seen) -> None:
        rises = {
            name: getattr(seen.after, name) - getattr(seen.before, name)
            for name in (
                *("used_pages", "private_pages", "shared_pages"),
                *("swap_cache_pages", "remainder_pages"),
            )
        }
        assert rises == {
            "used_pages": seen.used - seen.used_before,
            "private_pages": seen.private.distinct_slots,
            "shared_pages": seen.mix.objects_out,
            "swap_cache_pages": len(seen.private.cached),
            "remainder_pages": 0,
        }

    def test_the_remainder_is_below_a_hundredth(self, seen: Seen) -> None:
        reachable = seen.after.remainder_pages - seen.unreadable
        assert abs(reachable) <= seen.used // 100
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
    make: Callable[[shm_mix.Builder], Made],
    squeeze: Squeeze,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def attempt() -> tuple[SwapLedger, SwapLedger, Made]:
        mix = Mix(tmp_path_factory.mktemp("unreachable"))
        with ExitStack() as stack:
            with standing_still():
                before, used = read_swap_ledger(), used_pages()
            made = make(shm_mix.Builder(stack, squeeze, swap, mix))
            with standing_still():
                private = shm_mix.read_private(mix.pids)
                after = read_swap_ledger()
            rise = made.out + private.distinct_slots + len(private.cached)
            if used_pages() - used != rise:
                raise StateMoved(f"Used rose by {used_pages() - used}, built {rise}")
            return before, after, made

    before, after, made = again_if_moved(attempt)
    assert after.remainder_pages - before.remainder_pages == made.out
    assert after.shared_pages == before.shared_pages
    notes = " ".join(after.notes)
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
