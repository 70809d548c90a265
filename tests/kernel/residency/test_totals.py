"""
Totals against the kernel's own, mapping by mapping, on real programs.

``present`` is smaps Rss, which leaves zero pages and hugetlb out.  ``swapped`` and
``swap_cached`` together are smaps Swap, except for private mappings of shared memory
that may not be written: there smaps counts the object's pages, copied or not.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from memlens import MappingPages, PageClass, ProcessMap, map_process
from tests.kernel.support import oracle, servers
from tests.kernel.support.cgroups import Cgroup, Squeeze
from tests.kernel.support.driver import (
    MADV_DONTNEED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    READ_WRITE,
    target,
)
from tests.kernel.support.machine import Missing, StateMoved
from tests.kernel.workloads.base import page_out
from tests.kernel.workloads.shmem import memfd, push_out

SWAPPED = (PageClass.SWAPPED, PageClass.SWAP_CACHED)
KIB_PER_PAGE = oracle.PAGE >> 10
ATTEMPTS = 4
ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)


@dataclass(frozen=True)
class Held:
    """What was compared: the map, and how many mappings stood still meanwhile."""

    result: ProcessMap
    compared: int


def hold_against_smaps(pid: int, *, is_still: bool = True) -> Held:
    """
    Compare every mapping that smaps says has not changed during the scan.

    :param is_still: the process is stopped: nothing but reclaim can change it.
    :raises StateMoved: if reclaim did.
    """
    before = oracle.read_smaps(pid)
    result = map_process(pid)
    after = oracle.read_smaps(pid)
    moved = {_sums(vma) for vma in before} ^ {_sums(vma) for vma in after}
    if is_still and moved:
        raise StateMoved(f"smaps changed while the process was stopped: {sorted(moved)}")
    unchanged = {_sums(vma) for vma in before} & {_sums(vma) for vma in after}
    compared = 0
    wrong = []
    mapped = {mapping.start: mapping for mapping in result.each}
    for vma in after:
        if _sums(vma) not in unchanged:
            continue
        compared += 1
        wrong += _differences(vma, mapped.get(vma.start))
    assert not wrong, "\n".join(wrong)
    return Held(result, compared)


def _sums(vma: oracle.Vma) -> tuple[int, int, int, int, str]:
    return vma.start, vma.stop, vma.fields["Rss"], vma.fields["Swap"], vma.path


def _differences(vma: oracle.Vma, mapping: MappingPages | None) -> list[str]:
    where = f"{vma.start:x}-{vma.stop:x} {vma.permissions} {vma.path}"
    if mapping is None or mapping.stop != vma.stop:
        return [f"{where}: not in the map"]
    counts = mapping.counts()
    present, swapped = (
        int(counts[PageClass.PRESENT]),
        int(sum(counts[kind] for kind in SWAPPED)),
    )
    wrong = []
    if mapping.object != "hugetlb" and present * KIB_PER_PAGE != vma.fields["Rss"]:
        wrong.append(f"{where}: {present} pages present, Rss {vma.fields['Rss']} kB")
    is_excepted = mapping.object == "shmem" and vma.permissions[1] + vma.permissions[3] == "-p"
    if not is_excepted and swapped * KIB_PER_PAGE != vma.fields["Swap"]:
        wrong.append(f"{where}: {swapped} pages swapped, Swap {vma.fields['Swap']} kB")
    assert counts.sum() == mapping.pages
    return wrong


def settled(pid: int) -> Held:
    """Compare a stopped process; again, a few times, if reclaim got in between."""
    for _ in range(ATTEMPTS - 1):
        try:
            return hold_against_smaps(pid)
        except StateMoved:
            continue
    return hold_against_smaps(pid)


def test_this_very_process() -> None:
    held = hold_against_smaps(os.getpid(), is_still=False)
    assert held.compared > 0.9 * len(held.result.mappings)
    assert held.result.counts()[PageClass.PRESENT] > 1000


PROGRAM = """
import json, numpy, sys
table = numpy.arange(3_000_000)
objects = {str(number): [number] for number in range(50_000)}
print("ready", flush=True)
for line in sys.stdin:
    print(sum(value[0] for value in objects.values()), flush=True)
"""


@contextmanager
def python(cgroup: Cgroup) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a Python that holds numbers and objects, charged to the cgroup."""
    enter = f'echo $$ > {cgroup.path}/cgroup.procs; exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", enter, "sh", sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def _swapped_pages(held: list[Held]) -> int:
    return int(sum(one.result.counts()[kind] for one in held for kind in SWAPPED))


@ON_SWAP
def test_a_python_partly_on_swap(swap: str, squeeze: Squeeze) -> None:
    with squeeze.cgroup() as cgroup, python(cgroup) as process:
        cgroup.reclaim()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"touch\n")
        process.stdin.flush()
        process.stdout.readline()
        with servers.stopped(servers.Server(process)):
            held = [settled(process.pid)]
    assert _swapped_pages(held) > 1000


@ON_SWAP
def test_a_postgresql_partly_on_swap(swap: str, squeeze: Squeeze) -> None:
    try:
        with squeeze.cgroup() as cgroup, servers.postgresql(cgroup) as server:
            fill = (
                "create table t as select g, repeat('x', 200) from generate_series(1, 60000) g"
            )
            servers.ask_postgresql(server, fill, "select count(*) from t")
            cgroup.reclaim()
            servers.ask_postgresql(server, "select count(*) from t where g < 20000")
            with servers.stopped(server) as pids:
                held = [settled(pid) for pid in pids]
            assert servers.ask_postgresql(server, "select count(*) from t") == "60000\n"
    except Missing as missing:
        pytest.skip(str(missing))
    assert len(held) >= 4  # the postmaster and its helpers
    (buffers,) = [
        mapping
        for mapping in held[0].result.each
        if mapping.object == "shmem" and mapping.pages * oracle.PAGE > 32 << 20
    ]
    counts = buffers.counts()
    assert sum(counts[kind] for kind in SWAPPED) > 500
    assert counts[PageClass.PRESENT] + counts[PageClass.CACHED] > 100
    assert counts[PageClass.UNKNOWN] == 0


@ON_SWAP
def test_a_redis_partly_on_swap(swap: str, squeeze: Squeeze) -> None:
    try:
        with squeeze.cgroup() as cgroup, servers.redis(cgroup) as server:
            value = "x" * 1000
            servers.ask_redis(server, *(f"SET key{n} {value}{n}" for n in range(20_000)))
            cgroup.reclaim()
            servers.ask_redis(server, *(f"GET key{n}" for n in range(5000)))
            with servers.stopped(server) as pids:
                held = [settled(pid) for pid in pids]
    except Missing as missing:
        pytest.skip(str(missing))
    counts = held[0].result.counts()
    assert _swapped_pages(held) > 1000
    assert counts[PageClass.PRESENT] > 500
    assert counts[PageClass.UNKNOWN] == 0


@ON_SWAP
def test_a_private_mapping_of_shared_memory_that_may_not_be_written(
    swap: str, squeeze: Squeeze
) -> None:
    """The one exception: smaps then counts pages on swap that hide behind copies, too."""
    with target() as driven, squeeze.cgroup() as cgroup:
        fd = memfd(driven, 23)
        with cgroup.charging(driven.pid):
            shared = driven.mmap(23, flags=MAP_SHARED, fd=fd)
            driven.poke(shared, range(23))
        start = driven.mmap(23, flags=MAP_PRIVATE, fd=fd)
        driven.poke(start, range(7))
        driven.madvise(start, range(7, 23), MADV_DONTNEED)
        page_out(driven, shared, range(23))
        push_out(cgroup, driven, fd, range(23))
        for protection, counted in ((READ_WRITE, 16), (PROT_READ, 23)):
            driven.libc("mprotect", start, 23 * oracle.PAGE, protection)
            (vma,) = oracle.smaps_at(driven.pid, start, start + 23 * oracle.PAGE)
            assert vma.fields["Swap"] == counted * KIB_PER_PAGE
            result = map_process(driven.pid, start=start, stop=vma.stop)
            counts = result.counts()
            assert int(counts[PageClass.PRESENT]) == 7
            assert int(sum(counts[kind] for kind in SWAPPED)) == 16
