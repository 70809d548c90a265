"""memlens sharing beside smaps_rollup and a slow count, on processes that stand still."""

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import jsonschema
import psutil
import pytest

from memlens.schema import json_schema
from memlens.sharing.frames import read_sharing
from memlens.sharing.records import MappingShare, ProcessShare, Sharing
from memlens.views.sharing import render
from memlens.views.text import TableOptions
from tests.kernel.support import driver, oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.commands import run, run_json, unless_others_begin
from tests.kernel.support.driver import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    Target,
)
from tests.kernel.support.machine import Missing, StateMoved, wait_until
from tests.kernel.support.rollup import is_rollup_pss
from tests.kernel.support.servers import ask_postgresql, ask_redis, postgresql, redis, stopped
from tests.kernel.support.standstill import again_if_moved

PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
PFN = (1 << 55) - 1


@pytest.fixture
def target() -> Iterator[Target]:
    with driver.target() as made:
        yield made


@contextmanager
def standing(*targets: Target) -> Iterator[list[int]]:
    """Stop processes; reading their registers from a signal stop changes no page."""
    pids = [target.pid for target in targets]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda pid=pid: psutil.Process(pid).status() == "stopped", "stopped")
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def rollup(pid: int) -> dict[str, float]:
    """Return figures of smaps_rollup in pages."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    rows = [line.replace(":", "").split() for line in lines]
    return {row[0]: int(row[1]) * 1024 / PAGE for row in rows}


def zero_frames() -> set[int]:
    """Return the frame of the zero page: a page that was only read."""
    with driver.target() as reader:
        start = reader.mmap(1, protection=PROT_READ)
        reader.peek(start, [0])
        return {int(oracle.read_pagemap(reader.pid, start, 1)[0]) & PFN}


def slow_frames(pid: int, zeros: set[int]) -> set[int]:
    """Return the frames of a process, one word after the other."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, stop = (int(part, 16) for part in line.split()[0].split("-"))
        if start >> 63:
            continue
        for word in oracle.read_pagemap(pid, start, (stop - start) // PAGE).tolist():
            if word & oracle.PRESENT:
                found.add(word & PFN)
    return found - zeros


def hold_against_rollup(pids: Sequence[int]) -> None:
    """
    Compare what a process of its own says with smaps_rollup.

    :raises StateMoved: if others mapped or unmapped pages of theirs meanwhile.
    """
    with unless_others_begin():
        before = [rollup(pid) for pid in pids]
        found = {row["pid"]: row for row in run_json("sharing", *pids)["tables"]["processes"]}
        if [rollup(pid) for pid in pids] != before:
            raise StateMoved("smaps_rollup changed")
        for pid, figures in zip(pids, before, strict=True):
            row = found[pid]
            assert row["rss_pages"] == figures["Rss"]
            assert row["uss_pages"] == figures["Private_Clean"] + figures["Private_Dirty"]
            pss_kib = int(figures["Pss"] * PAGE / 1024)
            assert is_rollup_pss(row["pss_pages"] * PAGE, pss_kib, row["rss_pages"])


def assert_true(result: Sharing, pids: Sequence[int]) -> None:
    """Compare with smaps_rollup, and every pair with sets of frames."""
    again_if_moved(lambda: hold_against_rollup(pids))
    assert {process.pid for process in result.processes} == set(pids)
    for process in result.processes:
        assert process.moved_pages == 0
        assert process.rss_pages == rollup(process.pid)["Rss"]
        for name in ("rss_pages", "uss_pages"):
            mapped = sum(getattr(row, name) for row in mappings_of(result, process.pid))
            assert mapped == getattr(process, name)
    zeros = zero_frames()
    frames = {pid: slow_frames(pid, zeros) for pid in pids}
    pairs = {frozenset((pair.a, pair.b)): pair.shared_pages for pair in result.pairs}
    assert pairs == {
        frozenset(pair): len(frames[pair[0]] & frames[pair[1]])
        for pair in combinations(pids, 2)
    }
    assert result.total.distinct_pages == len(set().union(*frames.values()))


def of(result: Sharing, pid: int) -> ProcessShare:
    (process,) = (process for process in result.processes if process.pid == pid)
    return process


def mappings_of(result: Sharing, pid: int) -> list[MappingShare]:
    return [row for row in result.mappings if row.pid == pid]


def test_what_was_copied_since_the_fork(target: Target) -> None:
    start = target.mmap(101)
    target.poke(start, range(101))
    one, other = target.fork(), target.fork()
    one.poke(start, range(17))
    fresh = one.mmap(5)
    one.poke(fresh, range(5))
    target.poke(start, [90])  # the parent writes: both children keep the old page
    with standing(target, one, other) as pids:
        result = read_sharing(pids)
        assert_true(result, pids)
    rows = {m.start_address: m for m in mappings_of(result, one.pid)}
    copied = rows[start]
    assert (copied.shared_with_parent_pages, copied.copied_pages) == (101 - 18, 18)
    assert (rows[fresh].new_private_pages, rows[fresh].new_object_pages) == (5, 0)
    (kept,) = (m for m in mappings_of(result, other.pid) if m.start_address == start)
    assert (kept.shared_with_parent_pages, kept.copied_pages, kept.uss_pages) == (100, 1, 0)
    assert of(result, target.pid).parent is None
    assert of(result, one.pid).parent == target.pid


def test_alone_everything_is_exact(target: Target) -> None:
    start = target.mmap(67)
    target.poke(start, range(0, 67, 2))
    target.peek(start, [1])  # the zero page is not in RSS
    with standing(target) as pids:
        result = read_sharing(pids)
        assert_true(result, pids)
    (mapping,) = (m for m in result.mappings if m.start_address == start)
    assert mapping.rss_pages == mapping.pss_pages == mapping.uss_pages == 34


def test_what_exit_frees(target: Target) -> None:
    """USS less what stays: a memfd that another process keeps open stays."""
    own = target.mmap(11)
    target.poke(own, range(11))
    before = read_sharing([target.pid]).processes[0].freed_on_exit_pages
    memory = target.os("memfd_create", "held", 0)
    target.os("ftruncate", memory, 9 * PAGE)
    start = target.mmap(9, flags=MAP_SHARED, fd=memory)
    target.poke(start, range(9))
    alone = read_sharing([target.pid]).processes[0]
    with open(f"/proc/{target.pid}/fd/{memory}", "rb"):
        held = read_sharing([target.pid]).processes[0]
    assert alone.uss_pages == pytest.approx(held.uss_pages, abs=2)
    assert alone.freed_on_exit_pages is not None
    assert held.freed_on_exit_pages is not None
    assert before is not None
    # The interpreter of the target may take a page of its own between two looks.
    assert alone.freed_on_exit_pages - held.freed_on_exit_pages == pytest.approx(9, abs=2)
    assert held.freed_on_exit_pages == pytest.approx(before, abs=8)


def test_the_end_of_one_of_two_in_one_memory_frees_nothing(target: Target) -> None:
    start = target.mmap(101)
    target.poke(start, range(101))
    forked = target.fork()
    forked.poke(start, range(17))
    with target.twin() as twin:
        result = read_sharing([target.pid, twin, forked.pid])
        alone = read_sharing([twin])
    assert of(result, target.pid).freed_on_exit_pages == 0
    assert of(result, twin).freed_on_exit_pages == 0
    assert of(alone, twin).freed_on_exit_pages == 0
    assert (of(result, forked.pid).freed_on_exit_pages or 0) >= 17
    assert any("2 processes run in one memory" in note for note in result.notes)


def test_what_changes_between_the_looks_has_moved(target: Target) -> None:
    """A page that the parent replaces meanwhile is in no other number, and not shared."""
    start = target.mmap(211)
    target.poke(start, range(211))
    other = target.fork()

    def between(done: int, total: int) -> None:
        if done == total // 2:
            # The child keeps the frames, so that the parent gets others.
            target.madvise(start, range(211), driver.MADV_DONTNEED)
            target.poke(start, range(211))

    before = read_sharing([target.pid, other.pid])
    result = read_sharing([target.pid, other.pid], on_progress=between)
    assert start in {m.start_address for m in mappings_of(before, target.pid)}
    assert start not in {m.start_address for m in mappings_of(result, target.pid)}
    assert 211 <= of(result, target.pid).moved_pages < 311
    assert of(before, other.pid).moved_pages < 50
    (was,), (now,) = before.pairs, result.pairs
    # Besides, the interpreters of the two write to pages that they shared.
    assert 211 <= was.shared_pages - now.shared_pages < 311
    assert any("changed while they were read" in note for note in result.notes)


def test_the_reader_counts_for_itself_alone(target: Target, tmp_path: Path) -> None:
    """A file that this process maps once, and another, too."""
    (tmp_path / "file").write_bytes(b"x" * 7 * PAGE)
    fd = target.os("open", str(tmp_path / "file"), os.O_RDONLY)
    start = target.mmap(7, protection=PROT_READ, flags=MAP_SHARED, fd=fd)
    target.peek(start, range(7))
    with (
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 7 * PAGE, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] == b"x" * 7 * PAGE
        result = read_sharing([os.getpid(), target.pid])
    rows = {
        pid: [m for m in mappings_of(result, pid) if m.path == str(tmp_path / "file")]
        for pid in (os.getpid(), target.pid)
    }
    (own,), (other,) = rows.values()
    assert (own.rss_pages, own.pss_pages, own.uss_pages) == (7, 3.5, 0)
    assert (other.rss_pages, other.pss_pages, other.uss_pages) == (7, 7.0, 7)


@pytest.mark.parametrize("words", [(), ("--strict",)])
def test_a_budget_that_is_too_small_is_said(target: Target, words: tuple[str, ...]) -> None:
    done = run("sharing", str(target.pid), "--budget", "0.000001", "--json", *words)
    assert done.returncode == (3 if words else 0)
    assert json.loads(done.stdout)["is_complete"] is False
    assert "incomplete" in done.stderr


def test_what_exit_frees_is_not_known_if_the_scan_ends_before(target: Target) -> None:
    """The page tables are read by then, but not who else holds what they map."""
    done = []
    result = read_sharing(
        [target.pid],
        on_progress=lambda *progress: done.append(progress),
        should_stop=lambda: (2, 2) in done,
    )
    (process,) = result.processes
    assert process.rss_pages > 0
    assert process.freed_on_exit_pages is None
    assert not result.is_complete
    assert any("the scan ended early" in note for note in result.notes)


def test_a_file_shows_what_the_scan_did(target: Target, tmp_path: Path) -> None:
    path = tmp_path / "sharing.json"
    path.write_text(run("sharing", str(target.pid), "--tree", "--json").stdout)
    report = Sharing.from_json(path.read_text())
    lines = render(report, TableOptions(80, is_unicode=True))
    text = "".join("".join(part.text for part in line) + "\n" for line in lines)
    shown = run("sharing", "--from", str(path))
    assert (shown.returncode, shown.stdout) == (0, text)
    jsonschema.validate(json.loads(path.read_text()), json_schema(Sharing))


def test_an_executed_program_is_no_fork(target: Target) -> None:
    code = "import subprocess, sys; result = subprocess.Popen([sys.executable, '-I', '-S', "
    code += "'-c', 'import sys; print(1, flush=True); sys.stdin.read()'], "
    code += "stdin=subprocess.PIPE, stdout=subprocess.PIPE); result.stdout.read(1); "
    code += "keep = result; result = keep.pid; os.kept = keep"
    child = target.run(code)
    result = read_sharing([target.pid], has_descendants=True)
    assert of(result, child).parent is None
    assert of(result, child).copied_pages is None


PREFORKED = f"""
import os, signal, sys
data = [bytearray({PAGE}) for _ in range(2000)]
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for item in data[: 300 * (number + 1)]:
            item[0] = 1
        os.write(1, b".")
        while True:
            signal.pause()
    children.append(pid)
sys.stdin.read()
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""


def test_a_preforked_python_server() -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PREFORKED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        for _ in range(3):
            server.stdout.read(1)
        pids = [server.pid, *(p.pid for p in psutil.Process(server.pid).children())]
        everyone = [Target(pid, None) for pid in pids]
        with standing(*everyone):
            result = read_sharing([server.pid], has_descendants=True)
            assert_true(result, pids)
        server.communicate()
    children = [process for process in result.processes if process.parent == server.pid]
    copied = [process.copied_pages or 0 for process in children]
    assert len(copied) == 3
    for number, pages in enumerate(sorted(copied), 1):
        assert pages >= 300 * number
        assert pages < 300 * number + 900


FILL = (
    "for i = 0, 60000 do redis.call('set', 'key:' .. i, string.rep('x', 100)) end return 'ok'"
)


@pytest.mark.parametrize("name", ["redis", "postgresql"])
def test_real_servers(squeeze: Squeeze, name: str) -> None:
    start = {"redis": redis, "postgresql": postgresql}[name]
    try:
        with squeeze.cgroup() as cgroup, start(cgroup) as server:
            if name == "redis":
                # BGSAVE forks; a delay for each key keeps its child alive while we look.
                ask_redis(server, f'EVAL "{FILL}" 0')
                ask_redis(server, "CONFIG SET rdb-key-save-delay 1000000", "BGSAVE")
                wait_until(lambda: len(server.pids()) > 1, "BGSAVE runs")
                ask_redis(server, *(f"SET key:{number} changed" for number in range(500)))
            else:
                ask_postgresql(
                    server,
                    "create table t as select generate_series(1, 20000) n",
                    "select sum(n) from t",
                )
            with stopped(server) as pids:
                result = read_sharing(pids)
                assert_true(result, pids)
    except Missing as missing:
        pytest.skip(str(missing))
    if name == "redis":
        child = result.processes[-1]
        assert child.parent == server.process.pid
        assert 0 < (child.copied_pages or 0) < (child.shared_with_parent_pages or 0)
    else:
        assert len(result.processes) > 4
        assert all(pair.shared_pages for pair in result.pairs)


def test_an_ordinary_user_gets_what_smaps_says() -> None:
    code = """
import json, os
import memlens.sharing.frames as module
os.setgroups([]); os.setgid(65534); os.setuid(65534)
import ctypes
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: changed users hide from themselves
print("".join(module.read_sharing([os.getpid()]).to_json()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found["sections"]["total"] == {"distinct_pages": None, "is_hidden": True}
    assert found["tables"]["pairs"] == []
    (process,) = found["tables"]["processes"]
    assert process["rss_pages"] > 1000
    assert 0 < process["uss_pages"] <= process["pss_pages"] <= process["rss_pages"]
    assert process["freed_on_exit_pages"] is None
    assert "page frames are hidden" in found["notes"][0]
