"""``memlens flags`` and ``memlens huge`` as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.support import driver
from tests.kernel.support.driver import HUGE, MADV_GUARD_INSTALL, MADV_HUGEPAGE, PAGE, Target
from tests.kernel.support.kernel_tools import page_types
from tests.kernel.support.verdicts import GIVE_AWAY
from tests.kernel.workloads.base import page_out

MEMLENS = [sys.executable, "-m", "memlens"]
DEADLINE_S = 60
FRAME = (1 << 55) - 1
# The prelude of a reader without privileges who looks at himself: what is imported later
# may be out of his reach.
AS_NOBODY = """
import ctypes, os, sys
import memlens.physical.flaglist, memlens.physical.flags, memlens.physical.frameflags
import memlens.commands.flags, memlens.commands.huge, memlens.views.flags, numpy
from memlens.physical import huge
from memlens.commands.main import cli
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
cli.main([str(os.getpid()) if word == "ME" else word for word in sys.argv[1:]])
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)


def run(command: list[str]) -> Done:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    return Done(done.returncode, done.stdout, done.stderr)


def memlens(*arguments: object) -> Done:
    return run([*MEMLENS, *map(str, arguments)])


def as_nobody(*arguments: str) -> Done:
    return run([sys.executable, "-c", AS_NOBODY, *arguments])


@pytest.fixture(scope="module")
def stopped(machine: None) -> Iterator[tuple[Target, int]]:
    """Make a process of 23 pages, 19 of them there, and 600 in huge pages; stopped."""
    with driver.target() as target:
        start = target.mmap(23)
        target.poke(start, [*range(11), *range(15, 23)])
        huge = target.mmap(2 * HUGE // PAGE, align=HUGE)
        target.libc("madvise", huge, 2 * HUGE, MADV_HUGEPAGE)
        target.poke(huge, range(600))
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)
        try:
            yield target, start
        finally:
            os.kill(target.pid, signal.SIGCONT)


def range_of(start: int) -> str:
    return f"{start:x}-{start + 23 * PAGE:x}"


def word_at(path: str, index: int) -> int:
    """Read one word, by itself, without any code of ours."""
    with open(path, "rb") as file:
        return int.from_bytes(os.pread(file.fileno(), 8, index * 8), "little")


def test_json_adds_up(stopped: tuple[Target, int]) -> None:
    pid = stopped[0].pid
    found = memlens("flags", pid, "--json").json()
    assert found["schema"] == "memlens.flags/1"
    assert found["pids"] == [pid]
    assert found["is_complete"] is True
    assert found["total_pages"] == sum(row["pages"] for row in found["combinations"])
    assert found["total_pages"] == sum(page_types("-p", str(pid)).values())
    assert found["hidden_pages"] == found["moved_pages"] == 0
    pages = [row["pages"] for row in found["combinations"]]
    assert pages == sorted(pages, reverse=True)
    thp = memlens("flags", pid, "--json", "--where", "thp and anon").json()
    assert thp["total_pages"] == 1024
    assert all({"thp", "anonymous"} <= set(row["flags"]) for row in thp["combinations"])


@pytest.mark.parametrize("spec", ["thp", "anon,~thp", "thp,zero_page=thp", "0x400000"])
def test_bits_mean_what_page_types_has_them_mean(
    stopped: tuple[Target, int], spec: str
) -> None:
    pid = stopped[0].pid
    found = memlens("flags", pid, "--json", "-b", spec).json()
    assert found["total_pages"] == sum(page_types("-p", str(pid), "-b", spec).values())


def test_text_says_the_same(stopped: tuple[Target, int]) -> None:
    pid, start = stopped[0].pid, stopped[1]
    done = memlens("flags", pid, "--range", range_of(start))
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"Pages mapped by {pid}"
    assert lines[2].split() == ["pages", "size", "share", "word", "flags"]
    assert lines[-1].split() == ["19", "76K", "total"]
    assert all("anonymous" in line for line in lines[3:-1])


def test_list_equals_one_page_at_a_time(stopped: tuple[Target, int]) -> None:
    pid, start = stopped[0].pid, stopped[1]
    found = memlens("flags", pid, "--range", range_of(start), "--list", "--json", "--raw")
    listed: dict[int, tuple[int, int]] = {}
    document = found.json()
    for row in document["ranges"]:
        for page in range(row["pages"]):
            address = row["address"] + page * PAGE
            assert address not in listed
            listed[address] = row["pfn"] + page, row["map_count"]
    wanted = {}
    for page in range(23):
        word = word_at(f"/proc/{pid}/pagemap", start // PAGE + page)
        if word >> 63:
            count = word_at("/proc/kpagecount", word & FRAME)
            wanted[start + page * PAGE] = word & FRAME, count
    assert listed == wanted
    assert len(wanted) == document["total_pages"] == 19
    assert document["is_complete"] is True
    assert all("anonymous" in row["flags"] for row in document["ranges"])
    text = memlens("flags", pid, "--range", range_of(start), "--list").out.splitlines()
    assert text[0].split()[:4] == ["address", "pages", "frame", "maps"]
    assert sum(int(line.split()[1]) for line in text[1:]) == 19


def test_list_of_frames_has_what_is_there(stopped: tuple[Target, int]) -> None:
    pid, start = stopped[0].pid, stopped[1]
    pfn = word_at(f"/proc/{pid}/pagemap", start // PAGE) & FRAME
    where = f"{pfn * PAGE:x}-{(pfn + 1) * PAGE:x}"
    (row,) = memlens("flags", "--machine", "--range", where, "--list", "--json").json()[
        "ranges"
    ]
    assert (row["address"], row["pfn"], row["pages"]) == (None, pfn, 1)
    assert "anonymous" in row["flags"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name PIDs"),
        (["1", "--machine"], "name PIDs"),
        (["x"], "not a PID"),
        (["1", "--where", "anon and lru2"], "character 10: anon and ▸lru2"),
        (["1", "--where", "(anon"], "expected ) at character 6"),
        (["1", "-b", "anon,nonsense"], "anon,▸nonsense"),
        (["--cgroup", "@x"], "not an inode number"),
    ],
)
def test_wrong_usage_points_at_the_place(arguments: list[str], says: str) -> None:
    done = memlens("flags", *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["999999999"], ["--file", "/no/such/file"], ["--cgroup", "/no/such"], ["2", "--list"]],
)
def test_what_cannot_be_read_is_exit_1(arguments: list[str]) -> None:
    done = memlens("flags", *arguments)
    assert (done.code, done.out.strip().count("\n")) == (1, 0)
    assert done.err.startswith("memlens: ")


def test_an_ordinary_user_is_told_what_remains() -> None:
    done = as_nobody("flags", "ME", "--json")
    found = done.json()
    assert found["hidden_pages"] > 100
    assert found["total_pages"] >= found["hidden_pages"]
    assert found["frames"] is None
    assert any("kpageflags" in note for note in found["notes"])
    assert as_nobody("flags", "ME", "--strict").code == 3


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
def test_an_ordinary_user_is_not_told_that_guards_are_on_swap(swap: str) -> None:
    """The bit says swap and the area is hidden; only of a guard another bit tells."""
    with driver.target() as target:
        start = target.mmap(23)
        target.madvise(start, range(7), MADV_GUARD_INSTALL)
        target.poke(start, range(7, 20))
        page_out(target, start, range(7, 18))
        target.run(GIVE_AWAY, uid=65534)
        where = f"{start:x}-{start + 23 * PAGE:x}"
        found = as_nobody("flags", str(target.pid), "--range", where, "--json").json()
        names = ("marker_pages", "swapped_pages", "hidden_pages", "total_pages")
        assert [found[name] for name in names] == [7, 0, 13, 20]
        found = memlens("flags", target.pid, "--range", where, "--json").json()
        assert [found[name] for name in names] == [7, 11, 0, 20]


@pytest.mark.parametrize(
    "arguments",
    [
        ["flags", "--machine"],
        ["flags", "--machine", "--list"],
        ["flags", "ME", "--where", "not anon"],
        ["flags", "ME", "-b", "lru"],
        ["flags", "ME", "--list", "--where", "lru"],
    ],
)
def test_an_ordinary_user_is_refused_what_needs_frames(arguments: list[str]) -> None:
    done = as_nobody(*arguments)
    assert (done.code, done.out) == (1, "")
    assert "needs" in done.err
    assert len(done.err.splitlines()) == 1


def test_what_pagemap_says_can_be_filtered_and_listed_by_anybody() -> None:
    """By bits that it has itself; the same pages, whether counted or listed."""
    for where in ("file", "not file and mmap_exclusive"):
        counted = as_nobody("flags", "ME", "--where", where, "--json").json()
        listed = as_nobody("flags", "ME", "--where", where, "--list", "--json").json()
        assert counted["total_pages"] > 10
        # Two processes, each looking at itself.
        assert listed["total_pages"] == pytest.approx(counted["total_pages"], rel=0.2)
        for row in listed["ranges"]:
            assert ("file" in row["flags"]) == (where == "file")
            assert (row["pfn"], row["map_count"], row["cgroup"]) == (None, None, None)
        assert any("needs" in note for note in listed["notes"])
    assert "?" in as_nobody("flags", "ME", "--list").out


def test_huge_pages_that_smaps_tells_are_told_to_anybody() -> None:
    """What PMDs map, and zero pages; what PTEs map is not known, which is not 0."""
    with driver.target() as target:
        start = target.mmap(2 * HUGE // PAGE, align=HUGE)
        target.libc("madvise", start, 2 * HUGE, MADV_HUGEPAGE)
        target.poke(start, [0])
        target.peek(target.mmap(7), range(5))
        truth = memlens("huge", target.pid, "--json").json()
        target.run(GIVE_AWAY, uid=65534)
        found = as_nobody("huge", str(target.pid), "--json").json()
    row = f"anon-thp-pmd-aligned-{HUGE >> 10}kB"
    assert found["thp"][row] == truth["thp"][row] == HUGE // PAGE
    assert found["zero_pages"] == truth["zero_pages"] == 5
    assert not [name for name in found["thp"] if "pte" in name]
    assert found["ksm_pages"] is None
    assert found["ksm_saved_pages"] is None
    assert any("not known" in note and "needs" in note for note in found["notes"])


@pytest.mark.parametrize("mask", ["/dev/null", "empty"])
def test_masked_files_are_no_flags(
    stopped: tuple[Target, int], tmp_path: Path, mask: str
) -> None:
    """As container runtimes hide files of /proc."""
    if mask == "empty":
        mask = str(tmp_path / "empty")
        Path(mask).touch()
    script = 'mount --bind "$0" /proc/kpageflags && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, mask, *MEMLENS]
    pid = str(stopped[0].pid)
    found = run([*inside, "flags", pid, "--json"]).json()
    assert found["hidden_pages"] > 600
    assert not any("nopage" in row["flags"] for row in found["combinations"])
    assert any("masked" in note for note in found["notes"])
    found = run([*inside, "huge", pid, "--json"]).json()
    assert found["ksm_pages"] is None
    assert any("masked" in note for note in found["notes"])
    for arguments in (["flags", "--machine"], ["flags", "--machine", "--list"]):
        done = run([*inside, *arguments])
        assert (done.code, done.out) == (1, "")
        assert "masked" in done.err


def test_ctrl_c_ends_a_long_list_and_keeps_what_it_has() -> None:
    """With no reader the list stands still in the middle, whatever the machine's speed."""
    command = [*MEMLENS, "flags", "--machine", "--list", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    begin = [child.stdout.readline() for _ in range(3)]
    child.send_signal(signal.SIGINT)
    # The signal is delivered when the process next runs; a second one would kill it.
    stop = time.monotonic() + DEADLINE_S
    while signal_waits(child.pid) and time.monotonic() < stop:
        pass
    rest = child.stdout.read()
    assert child.wait(DEADLINE_S) == 130
    found = json.loads("".join(begin) + rest)
    assert found["is_complete"] is False
    assert len(found["ranges"]) > 3


def signal_waits(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    waiting = [int(line.split()[1], 16) for line in lines if line.startswith(("SigP", "ShdP"))]
    return any(bits >> (signal.SIGINT - 1) & 1 for bits in waiting)


def test_huge_json_and_text(stopped: tuple[Target, int]) -> None:
    pid = stopped[0].pid
    found = memlens("huge", pid, "--json").json()
    assert found["schema"] == "memlens.huge/1"
    assert found["thp"]["anon-thp-pmd-aligned-2048kB"] == 1024
    (process,) = found["processes"]
    assert process["pid"] == pid
    (mapping,) = [
        row for row in process["mappings"] if row["thp"]["anon-thp-pmd-aligned-2048kB"]
    ]
    assert mapping["stop"] - mapping["start"] == 2 * HUGE
    assert found["missed"] == []
    text = memlens("huge", pid, "--rollup")
    assert text.code == 0
    assert "anon-thp-pmd-aligned-2048kB" in text.out
    assert "1024 pages" in text.out


@pytest.mark.parametrize("size", ["3K", "5", "x", "4M"])
def test_blocks_of_no_size_are_wrong_usage(stopped: tuple[Target, int], size: str) -> None:
    done = memlens("huge", stopped[0].pid, "--cont", size)
    assert (done.code, done.out) == (2, "")
