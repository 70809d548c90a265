"""The ledger on PostgreSQL and on a Redis that saves in the background, partly on swap."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from memlens import SwapLedger, list_shared_memory
from memlens.swap.records import SwappedObject
from tests.kernel.support import servers
from tests.kernel.support.cgroups import Cgroup, Squeeze
from tests.kernel.support.driver import PAGE
from tests.kernel.support.machine import Missing, StateMoved, wait_until
from tests.kernel.support.private_pages import Private, read_private
from tests.kernel.support.rollup import hold_against_rollup
from tests.kernel.support.servers import Server
from tests.kernel.support.shared_memory import holders_of
from tests.kernel.support.standstill import StillLedger, again_if_moved, read_still_ledger
from tests.kernel.workloads.shm_builder import count_evicted

ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)


@dataclass(frozen=True)
class Seen:
    """The ledger, and what the page tables said before and after it was made."""

    still: StillLedger
    private: Private

    @property
    def ledger(self) -> SwapLedger:
        return self.still.ledger


def _look(pids: list[int]) -> Seen:
    """Look at processes that are stopped; again if one of their pages moved."""

    def attempt() -> Seen:
        private = read_private(pids)
        still = read_still_ledger()
        if not read_private(pids).has_slots_of(private):
            raise StateMoved("private pages moved")
        return Seen(still, private)

    return again_if_moved(attempt)


def _hold_ledger(seen: Seen, pids: list[int]) -> None:
    """Hold what must be true whatever was built."""
    ledger = seen.ledger
    swap = ledger.sums["swap"]
    found = swap["private_pages"] + swap["shared_pages"] + swap["swap_cache_pages"]
    assert swap["total_pages"] == found + swap["remainder_pages"]
    assert abs(seen.still.reachable) <= swap["total_pages"] / 100
    assert not len(ledger.slots_claimed_twice)
    assert sum(row.named_pages for row in ledger.slot_areas) == found
    rows = {row.pid: row for row in ledger.processes}
    for pid in pids:
        row = rows.get(pid)
        assert (row.swap_entries_pages if row else 0) == len(seen.private.slots[pid])
        assert (row.swap_cached_pages if row else 0) == len(seen.private.kept[pid])


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except Missing as missing:
        pytest.skip(str(missing))


def _mappers(pids: list[int], device: str, inode: int) -> dict[int, int]:
    """Return how many pages of an object each of these processes maps."""
    found: dict[int, int] = {}
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            if fields[3:5] == [device, str(inode)]:
                start, stop = (int(part, 16) for part in fields[0].split("-"))
                found[pid] = found.get(pid, 0) + (stop - start) // PAGE
    return found


@ON_SWAP
def test_postgresql_with_shared_buffers_on_swap(swap: str, squeeze: Squeeze) -> None:
    with _installed(), squeeze.cgroup() as cgroup, servers.postgresql(cgroup) as server:
        fill = "create table t as select g, repeat('x', 200) from generate_series(1, 60000) g"
        servers.ask_postgresql(server, fill, "select count(*) from t")
        cgroup.reclaim()
        servers.ask_postgresql(server, "select count(*) from t where g < 20000")
        with servers.stopped(server) as pids:
            seen = _look(pids)
            _hold_ledger(seen, pids)
            buffers = max(
                (
                    item
                    for item in seen.ledger.objects
                    if item.kind == "anonymous" and _maps(seen.ledger, item, pids[0])
                ),
                key=lambda item: item.size_bytes,
            )
            assert buffers.size_bytes > 32 << 20
            mappers = _mappers(pids, buffers.device, buffers.inode)
            path = _map_files(pids[0], buffers.device, buffers.inode)
            assert buffers.swap_pages == count_evicted(path) > 500
            assert {h.pid: h.mapped_pages for h in holders_of(seen.ledger, buffers)} == mappers
            assert len(mappers) >= 4
            rows = {row.pid: row for row in seen.ledger.processes}
            shares = [rows[pid].swap_share_bytes for pid in mappers]
            assert min(shares) >= buffers.swap_pages * PAGE / len(mappers)
            listed = list_shared_memory()
            (same,) = [
                o
                for o in listed.objects
                if (o.device, o.inode) == (buffers.device, buffers.inode)
            ]
            assert same.swap_pages == buffers.swap_pages
            again_if_moved(lambda: hold_against_rollup(pids))


def _maps(ledger: SwapLedger, item: SwappedObject, pid: int) -> bool:
    return any(h.pid == pid and h.mapped_pages for h in holders_of(ledger, item))


def _map_files(pid: int, device: str, inode: int) -> str:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        if fields[3:5] == [device, str(inode)]:
            return f"/proc/{pid}/map_files/{fields[0]}"
    raise AssertionError(f"{pid} does not map {device}:{inode}")


@contextmanager
def _saving(server: Server) -> Iterator[int]:
    """Have Redis save in a child that takes its time, and yield the child."""
    parent = psutil.Process(server.process.pid)
    servers.ask_redis(server, "CONFIG SET rdb-key-save-delay 20000", "BGSAVE")
    wait_until(lambda: bool(parent.children()), "Redis forks to save")
    (child,) = parent.children()
    try:
        yield child.pid
    finally:
        child.kill()


@ON_SWAP
def test_redis_while_it_saves(swap: str, squeeze: Squeeze) -> None:
    """The child has the parent's slots as well, until one of them touches a page."""
    with _installed(), squeeze.cgroup() as cgroup, servers.redis(cgroup) as server:
        value = "x" * 1000
        servers.ask_redis(server, *(f"SET key{n} {value}{n}" for n in range(20_000)))
        cgroup.reclaim()
        with _saving(server) as child:
            servers.ask_redis(server, *(f"GET key{n}" for n in range(2000)))
            with servers.stopped(server) as pids:
                assert sorted(pids) == sorted([server.process.pid, child])
                seen = _look(pids)
                _hold_ledger(seen, pids)
                ours, theirs = (seen.private.slots[pid] for pid in pids)
                assert len(ours & theirs) > 1000
                assert seen.ledger.sums["swap"]["private_pages"] >= len(ours | theirs)
                rows = {row.pid: row for row in seen.ledger.processes}
                for pid in pids:
                    assert rows[pid].freed_on_exit_pages == seen.private.held_alone(pid)
                again_if_moved(lambda: hold_against_rollup(pids))


@ON_SWAP
def test_the_cgroup_is_charged_what_is_found(swap: str, squeeze: Squeeze) -> None:
    """On version 1 the kernel's own count of a cgroup, swap cache included, bounds ours."""
    with _installed(), squeeze.cgroup() as cgroup, servers.redis(cgroup) as server:
        value = "x" * 1000
        servers.ask_redis(server, *(f"SET key{n} {value}{n}" for n in range(10_000)))
        cgroup.reclaim()
        with servers.stopped(server) as pids:
            seen = _look(pids)
            charged = _charged_pages(cgroup)
        path = f"/{cgroup.path.relative_to(squeeze.root)}"
        (row,) = [row for row in seen.ledger.cgroups if row.path == path]
        slots = len(seen.private.slots[server.process.pid])
        assert slots > 1000
        assert row.swap_slots_pages == slots
        assert row.charged_pages == pytest.approx(charged, rel=0.01)


def _charged_pages(cgroup: Cgroup) -> int:
    current = cgroup.path / "memory.swap.current"
    if current.exists():
        return int(current.read_text()) // PAGE
    for line in (cgroup.path / "memory.stat").read_text().splitlines():
        name, value = line.split()
        if name == "swap":
            return int(value) // PAGE
    raise AssertionError("no figure of swap in memory.stat")
