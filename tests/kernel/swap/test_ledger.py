"""The swap ledger against what was built, and against ``Used`` of /proc/swaps."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from memlens import SwapLedger, read_swap_ledger
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import PAGE
from tests.kernel.support.machine import StateMoved
from tests.kernel.support.private_pages import Private, read_private
from tests.kernel.support.shared_memory import holders_of, slots_of
from tests.kernel.support.standstill import (
    StillLedger,
    again_if_moved,
    hold_rise,
    read_still_ledger,
)
from tests.kernel.workloads import shm_mix
from tests.kernel.workloads.shm_builder import Builder, Made, Mix

ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)


@dataclass(frozen=True)
class Seen:
    """What memlens and the kernel said before and after the mix was built."""

    mix: Mix
    private: Private
    first: StillLedger
    last: StillLedger

    @property
    def before(self) -> SwapLedger:
        return self.first.ledger

    @property
    def after(self) -> SwapLedger:
        return self.last.ledger


def _look(squeeze: Squeeze, swap: str, directory: Path) -> Seen:
    directory.mkdir(exist_ok=True)
    first = read_still_ledger()
    with shm_mix.mixed(squeeze, swap, directory) as mix:
        mix.reprove()
        private = read_private(mix.pids)
        last = read_still_ledger()
        mix.reprove()
        if not read_private(mix.pids).has_slots_of(private):
            raise StateMoved("private pages of the mix moved")
        # Others may go to swap and come back while the mix is built: they are attributed as
        # well, so that the remainder stays as it was, to the page.
        hold_rise(first, last, 0)
        return Seen(mix, private, first, last)


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
            swap = ledger.sums["swap"]
            found = sum(
                swap[name] for name in ("private_pages", "shared_pages", "swap_cache_pages")
            )
            assert found == swap["explained_pages"]
            assert found + swap["remainder_pages"] == swap["total_pages"]

    def test_what_was_built_is_attributed_exactly(self, seen: Seen) -> None:
        keys = {made.key for made in seen.mix.objects}
        objects = [
            item
            for item in seen.after.objects
            if (item.kind, item.device, item.inode, item.size_bytes) in keys
        ]
        assert sum(item.swap_pages for item in objects) == seen.mix.objects_out
        private = [o for o in seen.after.slot_owners if o.pid in seen.mix.pids]
        assert sum(owner.pages for owner in private) == seen.private.distinct_held

    def test_every_slot_is_named_once(self, seen: Seen) -> None:
        for ledger in (seen.before, seen.after):
            assert not len(ledger.slots_claimed_twice)
            named = sum(row.named_pages for row in ledger.slot_areas)
            swap = ledger.sums["swap"]
            assert named + swap["remainder_pages"] == swap["total_pages"]
            assert int(ledger.slot_runs.column("pages").sum()) == named
        for item in seen.after.objects:
            assert slots_of(seen.after, item) == item.swap_pages, item

    def test_nothing_is_in_doubt(self, seen: Seen) -> None:
        assert not [note for note in seen.after.notes if "may hold" in note]
        assert seen.after.slot_map is not None
        assert not seen.after.slot_map.cache_reason

    def test_the_remainder_is_what_it_was(self, seen: Seen) -> None:
        assert seen.last.reachable == seen.first.reachable
        assert seen.after.missed == seen.before.missed

    def test_pages_in_ram_that_keep_a_slot(self, seen: Seen) -> None:
        cached = {row.pid: row.swap_cached_pages for row in seen.after.processes}
        for pid in seen.mix.pids:
            assert cached.get(pid, 0) == len(seen.private.kept[pid]), pid

    def test_processes_have_their_slots(self, seen: Seen) -> None:
        own = {row.pid: row.swap_entries_pages for row in seen.after.processes}
        for pid in seen.mix.pids:
            assert own.get(pid, 0) == len(seen.private.slots[pid]), pid
        assert any(seen.private.slots[pid] for pid in seen.mix.family)

    def test_exit_frees_what_no_other_process_holds(self, seen: Seen) -> None:
        freed = {row.pid: row.freed_on_exit_pages for row in seen.after.processes}
        for pid in seen.mix.pids:
            private = seen.private.held_alone(pid)
            kept = [
                made.out
                for made in seen.mix.objects
                if list(made.holders) == [pid]
                and (made.kind in ("memfd", "anonymous") or "deleted" in made.marks)
            ]
            assert freed.get(pid, 0) == private + sum(kept), pid

    def test_shares_sum_to_what_is_mapped(self, seen: Seen) -> None:
        shares = {row.pid: row.swap_share_bytes for row in seen.after.processes}
        wanted = {pid: seen.private.share(pid) for pid in seen.mix.pids}
        for made in seen.mix.objects:
            mappers = [pid for pid, (mapped, _) in made.holders.items() if mapped]
            for pid in mappers:
                wanted[pid] += made.out / len(mappers)
        for pid, share in wanted.items():
            # Rounded to a byte.
            assert shares.get(pid, 0) == pytest.approx(share * PAGE, abs=1), pid

    def test_shares_of_all_processes_add_up(self, seen: Seen) -> None:
        """To private pages and the objects that anybody maps, each rounded to a byte."""
        for ledger in (seen.before, seen.after):
            mapped = {row.object for row in ledger.holders if row.mapped_pages}
            wanted = ledger.sums["swap"]["private_pages"] + sum(
                item.swap_pages for item in ledger.objects if item.object in mapped
            )
            shares = [row.swap_share_bytes for row in ledger.processes]
            if None not in shares:
                assert sum(shares) == pytest.approx(wanted * PAGE, abs=len(shares))

    def test_what_only_one_process_has(self, seen: Seen) -> None:
        mine = {row.pid: row.swap_only_mine_pages for row in seen.after.processes}
        for pid in seen.mix.pids:
            assert mine.get(pid, 0) == seen.private.entries_alone(pid), pid

    def test_objects_once_with_their_holders(self, seen: Seen) -> None:
        found = seen.after.objects
        keys = [(o.kind, o.device, o.inode, o.size_bytes) for o in found]
        assert len(keys) == len(set(keys))
        by_key = dict(zip(keys, found, strict=True))
        for made in seen.mix.objects:
            item = by_key.get(made.key)
            assert item is not None, f"missed: {made}"
            assert item.swap_pages == made.out, made
            holders = {h.pid: (h.mapped_pages, h.is_open) for h in holders_of(seen.after, item)}
            assert holders == made.holders, made


@ON_SWAP
@pytest.mark.parametrize("make", shm_mix.UNREACHABLE, ids=lambda make: make.__name__)
def test_the_remainder_grows_by_what_is_out_of_reach(
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
    assert not len(ledger.areas)
    swap = ledger.sums["swap"]
    assert (swap["total_pages"], swap["remainder_pages"]) == (0, 0)
    assert not len(ledger.objects)
