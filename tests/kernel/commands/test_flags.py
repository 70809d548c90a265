"""``memlens flags`` and ``memlens huge`` as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from memlens.physical.flagreport import count_flags, list_flags
from memlens.physical.hugereport import map_huge
from memlens.physical.pagecache import read_files
from memlens.report import Report
from memlens.schema import json_schema
from memlens.views import files, flags, huge
from memlens.views.text import Line, TableOptions
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
import memlens.physical.flagreport, memlens.views.huge
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


def rows_of(document: Any, name: str) -> list[dict[str, Any]]:
    """Return the rows of a compact table."""
    table = document["tables"][name]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def ranges_of(document: Any) -> list[dict[str, Any]]:
    return rows_of(document, "ranges")


def total_pages(document: Any) -> int:
    total: int = document["sections"]["total"]["total_pages"]
    return total


def counters_of(
    document: Any, pid: int | None = None, start: int | None = None
) -> dict[str, int]:
    """Return the counters of a mapping, of a process, or of all."""
    rows = rows_of(document, "counters")
    return {
        row["name"]: row["pages"] for row in rows if (row["pid"], row["start"]) == (pid, start)
    }


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
    assert found["schema"] == "memlens.flags/2"
    assert found["is_complete"] is True
    total, rows = found["sections"]["total"], found["tables"]["combinations"]
    assert total["subject"] == f"Pages mapped by {pid}"
    assert total["total_pages"] == sum(row["pages"] for row in rows)
    assert total["total_pages"] == sum(page_types("-p", str(pid)).values())
    assert total["hidden_pages"] == total["moved_pages"] == 0
    pages = [row["pages"] for row in rows]
    assert pages == sorted(pages, reverse=True)
    thp = memlens("flags", pid, "--json", "--where", "thp and anon").json()
    assert total_pages(thp) == 1024
    assert all(
        {"thp", "anonymous"} <= set(row["flags"].split(", "))
        for row in thp["tables"]["combinations"]
    )


@pytest.mark.parametrize("spec", ["thp", "anon,~thp", "thp,zero_page=thp", "0x400000"])
def test_bits_mean_what_page_types_has_them_mean(
    stopped: tuple[Target, int], spec: str
) -> None:
    pid = stopped[0].pid
    found = memlens("flags", pid, "--json", "-b", spec).json()
    assert total_pages(found) == sum(page_types("-p", str(pid), "-b", spec).values())


def test_text_says_the_same(stopped: tuple[Target, int]) -> None:
    pid, start = stopped[0].pid, stopped[1]
    done = memlens("flags", pid, "--range", range_of(start))
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"Pages mapped by {pid}"
    assert lines[2].split() == ["pages", "size", "share", "word", "flags"]
    end = lines.index("19 pages (76K) in all")
    # Names that take two lines begin below the first.
    assert sum(int(line.split()[0]) for line in lines[3:end] if line[:6].strip()) == 19
    assert max(map(len, lines)) <= 80


def test_list_equals_one_page_at_a_time(stopped: tuple[Target, int]) -> None:
    pid, start = stopped[0].pid, stopped[1]
    found = memlens("flags", pid, "--range", range_of(start), "--list", "--json", "--raw")
    listed: dict[int, tuple[int, int]] = {}
    document = found.json()
    rows = ranges_of(document)
    for row in rows:
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
    assert len(wanted) == total_pages(document) == 19
    assert document["is_complete"] is True
    assert all("anonymous" in row["flags"] for row in rows)
    text = memlens("flags", pid, "--range", range_of(start), "--list").out.splitlines()
    assert text[2].split() == ["address", "pages", "frame", "maps", "flags"]
    listed_text = [line.split() for line in text[3 : text.index("19 pages (76K) in all")]]
    assert (
        sum(int(words[1]) for words in listed_text if words[0].startswith(f"{start:x}"[:6]))
        == 19
    )


def test_list_of_frames_has_what_is_there(stopped: tuple[Target, int]) -> None:
    pid, start = stopped[0].pid, stopped[1]
    pfn = word_at(f"/proc/{pid}/pagemap", start // PAGE) & FRAME
    where = f"{pfn * PAGE:x}-{(pfn + 1) * PAGE:x}"
    found = memlens("flags", "--machine", "--range", where, "--list", "--json").json()
    (row,) = ranges_of(found)
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
    total = found["sections"]["total"]
    assert total["hidden_pages"] > 100
    assert total["total_pages"] >= total["hidden_pages"]
    assert total["frames"] is None
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
        assert [found["sections"]["total"][name] for name in names] == [7, 0, 13, 20]
        found = memlens("flags", target.pid, "--range", where, "--json").json()
        assert [found["sections"]["total"][name] for name in names] == [7, 11, 0, 20]


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
        assert total_pages(counted) > 10
        # Two processes, each looking at itself.
        assert total_pages(listed) == pytest.approx(total_pages(counted), rel=0.2)
        for row in ranges_of(listed):
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
    assert counters_of(found)[row] == counters_of(truth)[row] == HUGE // PAGE
    total = found["sections"]["total"]
    assert total["zero_pages"] == truth["sections"]["total"]["zero_pages"] == 5
    assert not [name for name in counters_of(found) if "pte" in name]
    assert (total["thp_pages"], total["ksm_pages"], total["ksm_saved_pages"]) == (None,) * 3
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
    assert found["sections"]["total"]["hidden_pages"] > 600
    assert not any("nopage" in row["flags"] for row in found["tables"]["combinations"])
    assert any("masked" in note for note in found["notes"])
    found = run([*inside, "huge", pid, "--json"]).json()
    assert found["sections"]["total"]["ksm_pages"] is None
    assert any("masked" in note for note in found["notes"])
    for arguments in (["flags", "--machine"], ["flags", "--machine", "--list"]):
        done = run([*inside, *arguments])
        assert (done.code, done.out) == (1, "")
        assert "masked" in done.err


def test_ctrl_c_ends_a_long_list(tmp_path: Path) -> None:
    """A scan begins with the boot, which nobody tells before the signal has come."""
    for name in ("kpageflags", "kpagecount", "kpagecgroup", "self", "mounts", "zoneinfo"):
        (tmp_path / name).symlink_to(f"/proc/{name}")
    boot = tmp_path / "sys" / "kernel" / "random" / "boot_id"
    boot.parent.mkdir(parents=True)
    os.mkfifo(boot)
    words = ["flags", "--machine", "--list", "--json", "--proc", str(tmp_path)]
    with subprocess.Popen([*MEMLENS, *words], stdout=subprocess.PIPE, text=True) as child:
        with boot.open("w") as file:
            child.send_signal(signal.SIGINT)
            # It is delivered when the process next runs; a second one would kill it.
            stop = time.monotonic() + DEADLINE_S
            while signal_waits(child.pid) and time.monotonic() < stop:
                pass
            file.write("a boot\n")
        out = child.communicate(timeout=DEADLINE_S)[0]
    assert child.returncode == 130
    found = json.loads(out)
    assert (found["is_complete"], found["boot_id"]) == (False, "a boot")


def signal_waits(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    waiting = [int(line.split()[1], 16) for line in lines if line.startswith(("SigP", "ShdP"))]
    return any(bits >> (signal.SIGINT - 1) & 1 for bits in waiting)


def test_huge_json_and_text(stopped: tuple[Target, int]) -> None:
    pid = stopped[0].pid
    found = memlens("huge", pid, "--json").json()
    assert found["schema"] == "memlens.huge/2"
    assert counters_of(found)["anon-thp-pmd-aligned-2048kB"] == 1024
    (process,) = found["tables"]["processes"]
    assert (process["pid"], process["thp_pages"]) == (pid, 1024)
    (mapping,) = [row for row in rows_of(found, "mappings") if row["thp_pages"]]
    assert mapping["stop"] - mapping["start"] == 2 * HUGE
    assert counters_of(found, pid, mapping["start"]) == {"anon-thp-pmd-aligned-2048kB": 1024}
    assert found["missed"] == []
    text = memlens("huge", pid, "--rollup")
    assert text.code == 0
    assert "anon-thp-pmd-aligned-2048kB" in text.out
    assert "1024 pages" in text.out


@pytest.mark.parametrize("size", ["3K", "5", "x", "4M"])
def test_blocks_of_no_size_are_wrong_usage(stopped: tuple[Target, int], size: str) -> None:
    done = memlens("huge", stopped[0].pid, "--cont", size)
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("command", "read", "render"),
    [
        ("flags", lambda pid: count_flags([pid]), flags.render),
        ("flags", lambda pid: list_flags([pid], is_raw=True), flags.render),
        ("huge", lambda pid: map_huge([pid], block_orders=[4]), huge.render),
        ("files", lambda pid: read_files([__file__], pid=pid), files.render),
        (
            "files",
            lambda _: read_files([str(Path(__file__).parent)], is_machine=True),
            files.render,
        ),
    ],
)
def test_a_report_that_was_kept_shows_the_same(
    stopped: tuple[Target, int],
    tmp_path: Path,
    command: str,
    read: Callable[[int], Report],
    render: Callable[[Any, TableOptions], Iterable[Line]],
) -> None:
    """What JSON has, read again by --from, is all that text shows."""
    report = read(stopped[0].pid)
    kept = tmp_path / "kept.json"
    kept.write_text("".join(report.to_json()))
    jsonschema.validate(json.loads(kept.read_text()), json_schema(type(report)))
    for width in (80, 120, 200):
        lines = render(report, TableOptions(width, is_unicode=True))
        drawn = "".join("".join(part.text for part in line) + "\n" for line in lines)
        words = [*MEMLENS, command, "--from", str(kept)]
        done = run(["env", f"COLUMNS={width}", "PYTHONUTF8=1", *words])
        assert (done.code, done.out) == (0, drawn)
        assert max(map(len, drawn.splitlines())) <= width
