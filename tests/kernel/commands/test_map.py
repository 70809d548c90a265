"""``memlens map`` as a user runs it, on processes made for it."""

import csv
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from memlens import map_process
from memlens.pages.classes import CLASS_OF, PageClass, counts_by_name
from memlens.residency.records import MappingPages, ProcessMap
from memlens.residency.tables import select_classes
from memlens.schema import json_schema
from memlens.views.map import render
from memlens.views.text import TableOptions
from tests.kernel.support import driver

MEMLENS = [sys.executable, "-m", "memlens"]
PAGE = os.sysconf("SC_PAGE_SIZE")
DEADLINE_S = 30

# A memfd of 23 pages, 11 of them written through the file and 5 through the mapping.
# A write fault maps one page; a read fault would map its neighbours as well.
SMALL = f"""
import mmap, os, sys
fd = os.memfd_create("it is; a name")
os.ftruncate(fd, 23 * {PAGE})
os.pwrite(fd, b"x" * (11 * {PAGE}), 0)
memory = mmap.mmap(fd, 23 * {PAGE})
for page in (0, 1, 2, 3, 22):
    memory[page * {PAGE}] = 1
print("ready", flush=True)
sys.stdin.read()
"""
RUNS = [[0, 4, "present"], [4, 7, "cached"], [11, 11, "none"], [22, 1, "present"]]
COUNTS = {"present": 5, "cached": 7, "none": 11}

# Twenty thousand mappings: every second page has other permissions.
LARGE = f"""
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
memory = mmap.mmap(-1, 20000 * {PAGE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for page in range(0, 20000, 2):
    if libc.mprotect(ctypes.c_void_p(start + page * {PAGE}), {PAGE}, 1):
        raise OSError("mprotect")
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Done:
    """A finished command line."""

    code: int
    out: str
    err: str


def memlens(*arguments: object, **environ: str) -> Done:
    done = subprocess.run(
        [*MEMLENS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, **environ},
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def running(program: str) -> Iterator[int]:
    """Run a Python program until the end, and yield its PID once it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child.pid
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture(scope="module")
def small() -> Iterator[int]:
    with running(SMALL) as pid:
        yield pid


@pytest.fixture(scope="module")
def large() -> Iterator[int]:
    with running(LARGE) as pid:
        yield pid


def address_of(pid: int) -> int:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return int(next(line for line in maps if "it is; a name" in line).split("-")[0], 16)


def map_json(*arguments: object) -> ProcessMap:
    done = memlens("map", *arguments, "--json")
    assert (done.code, done.err) == (0, "")
    jsonschema.validate(json.loads(done.out), json_schema(ProcessMap))
    return ProcessMap.from_json(done.out)


def mapping_json(pid: int, *arguments: str) -> MappingPages:
    (found,) = [row for row in map_json(pid, *arguments).each if "a name" in row.path]
    return found


def runs_of(mapping: MappingPages) -> list[list[object]]:
    return [[first, pages, PageClass(value).label] for first, pages, value in mapping.runs]


def counts_of(mapping: MappingPages) -> dict[str, int]:
    return counts_by_name(mapping.counts())


def test_json_says_where_the_pages_are(small: int) -> None:
    mapping = mapping_json(small, "--pages", "--words")
    assert mapping.start == address_of(small)
    assert mapping.stop == mapping.start + 23 * PAGE
    assert mapping.path == "/memfd:it is; a name (deleted)"
    assert mapping.object == "shmem"
    assert counts_of(mapping) == COUNTS
    assert runs_of(mapping) == RUNS
    assert not mapping.unknown
    assert mapping.words is not None
    assert mapping.words.page.tolist() == [0, 1, 2, 3, 22]
    assert all(word >> 63 for word in mapping.words.word.tolist())


def test_json_names_the_process_and_adds_up(small: int) -> None:
    result = map_json(small)
    assert result.process is not None
    assert result.process.pid == small
    assert shlex.split(result.process.cmdline) == [sys.executable, "-c", SMALL]
    assert result.process.started_at.endswith("Z")
    assert (result.kernel, result.page_size_bytes) == (os.uname().release, PAGE)
    assert result.is_complete
    assert "runs" not in result.tables
    for mapping in result.mappings:
        assert mapping.counts().sum() == mapping.stop_page - mapping.start_page
    sums = result.sums["pages"]
    assert [sums[f"{kind.label}_pages"] for kind in PageClass] == result.counts().tolist()
    assert sums["total_pages"] == result.counts().sum()


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize(
    ("arguments", "top", "only"),
    [
        ([], None, ""),
        (["--pages"], None, ""),
        (["--only", "cached"], None, "cached"),
        (["--top", "3"], 3, ""),
    ],
)
def test_a_saved_map_is_drawn_as_the_process_was(
    small: int, tmp_path: Path, columns: int, arguments: list[str], top: int | None, only: str
) -> None:
    found = map_process(small, words=True)
    saved = tmp_path / "map.json"
    saved.write_text("".join(found.to_json()))
    shown = select_classes(found, {CLASS_OF[only]}) if only else found
    options = TableOptions(columns, top=top)
    lines = render(shown, options, has_runs="--pages" in arguments)
    drawn = "".join("".join(part.text for part in line) + "\n" for line in lines)
    ascii_only = {"COLUMNS": str(columns), "PYTHONIOENCODING": "ascii"}
    done = memlens("map", "--from", saved, *arguments, **ascii_only)
    assert (done.code, done.out) == (0, drawn)


def test_csv_says_the_same(small: int) -> None:
    rows = list(csv.DictReader(io.StringIO(memlens("map", small, "--csv").out)))
    (row,) = [row for row in rows if "a name" in row["path"]]
    assert {name: int(row[f"{name}_pages"]) for name in COUNTS} == COUNTS
    for options in (["--pages"], ["--table", "runs"]):
        done = memlens("map", small, "--csv", *options)
        runs = [
            [int(row["first_page"]), int(row["pages"]), row["page_class"]]
            for row in csv.DictReader(io.StringIO(done.out))
            if int(row["start_page"]) * PAGE == address_of(small)
        ]
        assert runs == RUNS


def test_a_budget_that_is_over_is_an_answer(large: int) -> None:
    done = memlens("map", large, "--budget", "0.000001", "--json")
    assert done.code == 0
    result = ProcessMap.from_json(done.out)
    assert not result.is_complete
    assert result.sums["pages"]["unknown_pages"]
    assert memlens("map", large, "--budget", "0.000001", "--strict").code == 3


@pytest.mark.parametrize("columns", [80, 200])
def test_text_shows_sizes_and_where(small: int, columns: int) -> None:
    done = memlens("map", small, COLUMNS=str(columns))
    (line,) = [line for line in done.out.splitlines() if "memfd:" in line]
    sizes = re.findall(r"\b\d+K", line)
    assert sizes == [f"{count * PAGE >> 10}K" for count in (23, *COUNTS.values())]
    strip = "PPPPccccccc...........P"
    assert line.endswith(strip) if columns == 200 else re.search(r"P+c+\.+P$", line)
    assert "\x1b" not in done.out
    assert all(len(line) <= columns for line in done.out.splitlines())
    assert "\nunknown   nothing\n" in done.out
    assert re.search(r"\ncost      .*, .* read, longest single read .*\n", done.out)


def test_only_some_classes(small: int) -> None:
    mapping = mapping_json(small, "--pages", "--only", "cached,none")
    assert counts_of(mapping) == {"cached": 7, "none": 11}
    assert runs_of(mapping) == RUNS[1:3]
    assert not len(map_json(small, "--only", "poisoned").mappings)


def test_a_range_cuts_the_mapping(small: int) -> None:
    start = address_of(small)
    cut = f"{start + 3 * PAGE + 1:x}-{start + 5 * PAGE:#x}"
    (mapping,) = map_json(small, "--pages", "--range", cut).each
    assert (mapping.start, mapping.stop) == (start, start + 23 * PAGE)
    assert runs_of(mapping) == [[3, 1, "present"], [4, 1, "cached"]]
    text = memlens("map", small, "--range", cut).out
    assert any(line.split()[-1] == "Pc" for line in text.splitlines() if line)


def test_strict_is_3_where_something_is_unknown(small: int) -> None:
    where = f"{address_of(small):x}-{address_of(small) + 23 * PAGE:x}"
    assert memlens("map", small, "--strict", "--range", where).code == 0
    off = "seek_data,cachestat,mincore"
    for shape in ([], ["--json"], ["--csv"]):
        arguments = ["map", small, "--strict", "--range", where, *shape]
        done = memlens(*arguments, MEMLENS_DISABLE=off)
        assert done.code == 3
        assert "unknown" in done.out


def test_nothing_mapped_in_a_range_is_an_error(small: int) -> None:
    done = memlens("map", small, "--range", "1000-2000")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"memlens: process {small} has nothing mapped in 1000-2000\n"


@contextmanager
def zombie() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        yield child.pid
    finally:
        child.wait()


def test_a_process_without_memory_is_an_error() -> None:
    with zombie() as pid:
        dead = memlens("map", pid)
    gone = memlens("map", pid)
    for done, word in ((dead, "zombie"), (gone, "does not exist")):
        assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
        assert word in done.err


def test_a_switch_that_does_not_exist_is_wrong_usage(small: int) -> None:
    done = memlens("map", small, MEMLENS_DISABLE="telepathy")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("shape", [[], ["--json"], ["--csv"], ["--pages"]])
def test_a_closed_pipe_is_quiet(large: int, shape: list[str]) -> None:
    command = [*MEMLENS, "map", str(large), *shape]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(DEADLINE_S) == 141


def test_a_pipe_closed_before_a_short_answer_is_quiet(small: int) -> None:
    """All of it is still buffered when the command is done."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*MEMLENS, "map", str(small)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_an_error(small: int) -> None:
    with open("/dev/full", "w") as full:
        command = [*MEMLENS, "map", str(small)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "memlens: No space left on device\n")


def test_closed_standard_output_is_an_error(small: int) -> None:
    command = 'exec "$@" >&-'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *MEMLENS, "map", str(small)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (1, "memlens: standard output is closed\n")


def interrupt_when(child: subprocess.Popen[str], is_time) -> None:
    """Send Ctrl-C as soon as the child has got somewhere."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_time(child.pid):
        assert child.poll() is None
        assert time.monotonic() < deadline
    child.send_signal(signal.SIGINT)


def is_scanning(pid: int) -> bool:
    """Return whether a process holds somebody's pagemap open."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}").endswith("/pagemap"):
                return True
        except FileNotFoundError:
            continue
    return False


def is_importing(pid: int) -> bool:
    return "_multiarray_umath" in Path(f"/proc/{pid}/maps").read_text()


def test_ctrl_c_prints_what_is_known(large: int) -> None:
    command = [*MEMLENS, "map", str(large), "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    interrupt_when(child, is_scanning)
    out, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130
    assert err == "memlens: stopped early: the answer is incomplete\n"
    result = ProcessMap.from_json(out)
    assert not result.is_complete
    assert result.counts()[PageClass.UNKNOWN] > 0
    assert len(result.mappings) >= 20000


def test_ctrl_c_before_the_scan_is_quiet(large: int) -> None:
    command = [*MEMLENS, "map", str(large)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    interrupt_when(child, is_importing)
    _, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130
    assert "Traceback" not in err


def on_terminal(*arguments: object, **environ: str) -> str:
    """Return what a command prints to a terminal."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [*MEMLENS, *map(str, arguments)],
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environ},
    )
    os.close(slave)
    shown = b""
    try:
        # Reading a terminal whose other end is closed is EIO on Linux.
        while piece := os.read(master, 1 << 16):
            shown += piece
    except OSError:
        pass
    finally:
        os.close(master)
        child.wait(DEADLINE_S)
    assert child.returncode == 0
    return shown.decode()


def test_names_in_csv_are_escaped_and_raw_in_json() -> None:
    name = "evil\x1b]0;title\x07,\x1b[31m"
    with driver.target() as target:
        fd = target.os("memfd_create", name)
        target.os("ftruncate", fd, 3 * PAGE)
        target.mmap(3, flags=driver.MAP_SHARED, fd=fd)
        for option in ("--csv", "--csv --pages"):
            arguments = ["map", str(target.pid), *option.split()]
            piped = memlens(*arguments).out
            shown = on_terminal(*arguments).replace("\r\n", "\n")
            if option == "--csv":
                assert r"evil\x1b]0;title\x07" in piped
                assert r"evil\x1b]0;title\x07" in shown
            assert "\x1b" not in shown + piped
            assert shown.count("\n") == piped.count("\n")
        assert any(name in row.path for row in map_json(target.pid).mappings)


def test_a_terminal_gets_colours_unless_unwanted(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = on_terminal("map", small, PYTHONUTF8="1")
    assert "\x1b[32m█" in shown
    for plain in (
        on_terminal("map", small, "--no-color"),
        on_terminal("map", small, NO_COLOR="1"),
        on_terminal("map", small, TERM="dumb"),
    ):
        assert "\x1b" not in plain
        assert "PPPP" in plain


def test_a_terminal_that_is_not_utf8_gets_ascii(small: int) -> None:
    shown = on_terminal("map", small, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.isascii()
    assert "\x1b[32mPPPP" in shown
