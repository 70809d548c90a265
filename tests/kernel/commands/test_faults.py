"""
Bad input and faults through the command line: one clear line, the right exit code.

What output does on closed pipes, full disks and Ctrl-C is in test_map.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from memlens.pages.classes import PageClass, counts_by_name
from memlens.residency.records import ProcessMap
from tests.kernel.support.commands import as_user
from tests.kernel.support.driver import (
    CLONE_NEWPID,
    MAP_SHARED,
    PAGE,
    READ_WRITE,
    Target,
    target,
)
from tests.kernel.support.machine import wait_until

USER = 65534


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


def memlens(*arguments: object, prefix: tuple[str, ...] = ()) -> Done:
    """Run the command line."""
    return _run(*prefix, sys.executable, "-m", "memlens", *arguments)


def memlens_as_user(
    uid: int, *arguments: object, prefix: tuple[str, ...] = (), is_dumpable: bool = True
) -> Done:
    """Run the command line as an ordinary user."""
    return _run(*prefix, *as_user(uid, is_dumpable=is_dumpable), *arguments)


def _run(*words: object) -> Done:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done: Done, code: int, *words: str) -> None:
    """Hold that there is one line of error, no output, and no traceback."""
    assert done.code == code, done
    assert done.out == ""
    assert len(done.err.splitlines()) == 1, done.err
    assert done.err.startswith("memlens: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


@pytest.fixture
def driven(machine: None) -> Iterator[Target]:
    with target() as made:
        yield made


NO_PIDS = ("0", "-1", "x", "1.5", "", " ", "0x10", "99999999999999999999", "1e3", "\u0661")


@pytest.mark.parametrize("command", ["map", "page"])
@pytest.mark.parametrize("pid", NO_PIDS)
def test_what_is_no_pid_is_wrong_usage(machine: None, command: str, pid: str) -> None:
    done = memlens(command, pid, *(["0"] if command == "page" else []))
    assert done.code in (1, 2)
    refused(done, done.code)


@pytest.mark.parametrize("command", ["map", "page"])
def test_no_such_process(machine: None, command: str) -> None:
    highest = int(Path("/proc/sys/kernel/pid_max").read_text())
    done = memlens(command, highest + 1, *(["0"] if command == "page" else []))
    refused(done, 1, str(highest + 1), "does not exist")


def test_a_kernel_thread(machine: None) -> None:
    refused(memlens("map", 2), 1, "kernel thread")
    refused(memlens("page", 2, "1000"), 1, "kernel thread")


def test_a_zombie(driven: Target) -> None:
    child = driven.fork()
    child.channel.close()  # it ends, and its parent does not wait for it
    wait_until(lambda: _state(child.pid) == "Z", "a zombie")
    refused(memlens("map", child.pid), 1, "zombie")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# The first thread ends; the second goes on with all the memory.
LEADERLESS = f"""
import ctypes, mmap, os, sys, threading
memory = mmap.mmap(-1, 23 * {PAGE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for page in range(0, 23, 2):
    memory[page * {PAGE}] = 1
fd = os.memfd_create("memlens-test")
os.ftruncate(fd, 23 * {PAGE})
os.pwrite(fd, b"x", 0)
shared = mmap.mmap(fd, 23 * {PAGE})
threading.Thread(target=sys.stdin.read).start()
print(f"{{start:x}}", flush=True)
print(f"{{ctypes.addressof(ctypes.c_char.from_buffer(shared)):x}}", flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""


@pytest.fixture
def leaderless(machine: None) -> Iterator[tuple[int, int, int]]:
    """Yield the PID, and where its private and its shared memory are, of 23 pages each."""
    with subprocess.Popen(
        [sys.executable, "-c", LEADERLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            private, shared = (int(process.stdout.readline(), 16) for _ in range(2))
            wait_until(lambda: _state(process.pid) == "Z", "the first thread has ended")
            yield process.pid, private, shared
        finally:
            process.kill()


def pages_of(done: Done) -> dict[str, int]:
    """Return the pages in each class of a map as JSON."""
    return counts_by_name(ProcessMap.from_json(done.out).counts())


def can_use(done: Done, name: str) -> bool:
    (row,) = [row for row in ProcessMap.from_json(done.out).evidence if row.name == name]
    return row.is_available


def test_a_process_whose_first_thread_has_ended(leaderless: tuple[int, int, int]) -> None:
    """/proc/PID looks like a zombie's; the memory is there, under another thread."""
    pid, start, _ = leaderless
    where = f"{start:x}-{start + 23 * PAGE:x}"
    done = memlens("map", pid, "--json", "--range", where)
    assert (done.code, done.err) == (0, "")
    assert pages_of(done) == {"present": 12, "none": 11}


@pytest.mark.parametrize("disabled", ["cachewalk", "map_files", "map_files,cachewalk"])
def test_what_a_thread_has_open_after_the_first_has_ended(
    leaderless: tuple[int, int, int], disabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors too are only in the directory of the thread that lives."""
    monkeypatch.setenv("MEMLENS_DISABLE", disabled)
    pid, _, start = leaderless
    where = f"{start:x}-{start + 23 * PAGE:x}"
    done = memlens("map", pid, "--json", "--range", where)
    assert pages_of(done) == {"cached": 1, "none": 22}


def test_a_page_names_the_files_of_the_thread_that_lives(
    leaderless: tuple[int, int, int],
) -> None:
    pid, _, start = leaderless
    steps = json.loads(memlens("page", pid, f"{start:x}", "--json").out)["tables"]["steps"]
    (thread,) = set(os.listdir(f"/proc/{pid}/task")) - {str(pid)}
    named = [word for step in steps for word in step["asked"].split() if "/proc/" in word]
    assert named
    assert not [word for word in named if not word.startswith(f"/proc/{thread}/")]


def test_a_process_of_another_user(driven: Target) -> None:
    refused(memlens_as_user(USER, "map", driven.pid), 1, "denied", str(driven.pid))
    refused(memlens_as_user(USER, "page", driven.pid, "1000"), 1, str(driven.pid))


def test_an_ordinary_users_own_process(machine: None) -> None:
    """What may not be known is unknown, with reasons; --strict says so in its exit code."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=USER, group=USER) as process:
        done = memlens_as_user(USER, "map", process.pid, "--json")
        strict = memlens_as_user(USER, "map", process.pid, "--json", "--strict")
        process.communicate()
    assert (done.code, done.err) == (0, "")
    pages = pages_of(done)
    assert pages["present"] > 100
    assert not can_use(done, "pfns_visible")
    assert strict.code == (3 if "unknown" in pages else 0)


def test_a_reader_that_may_not_read_itself(machine: None) -> None:
    """As a program that gained capabilities when it was executed: /proc/self is root's."""
    with subprocess.Popen(["sleep", "600"], user=USER, group=USER, extra_groups=[]) as own:
        try:
            stat = Path(f"/proc/{own.pid}/stat")
            wait_until(lambda: ") S " in stat.read_text(), "asleep")
            done = memlens_as_user(USER, "map", own.pid, "--json", is_dumpable=False)
            normal = memlens_as_user(USER, "map", own.pid, "--json")
        finally:
            own.kill()
    assert (done.code, done.err) == (0, "")
    assert not can_use(done, "pagemap_scan")
    assert can_use(normal, "pagemap_scan")
    assert pages_of(done)["present"] == pages_of(normal)["present"]


def test_a_process_in_a_pid_namespace(driven: Target) -> None:
    """Named by its PID here, as every other; its PID there is another process, or none."""
    driven.libc("unshare", CLONE_NEWPID)
    inside = driven.fork()
    start = inside.mmap(23)
    inside.poke(start, range(7))
    where = f"{start:x}-{start + 23 * PAGE:x}"
    done = memlens("map", inside.pid, "--json", "--range", where)
    assert pages_of(done) == {"present": 7, "none": 16}
    assert inside.os("getpid") == 1


BAD_RANGES = (
    *("1000", "1000-", "-1000", "2000-1000", "1000-1000", "x-y", "1000-2000-3000"),
    *("10000000000000000-10000000000001000", "1000--2000", "0x-1", ""),
)


@pytest.mark.parametrize("text", BAD_RANGES)
def test_malformed_ranges(driven: Target, text: str) -> None:
    refused(memlens("map", driven.pid, f"--range={text}"), 2, "range")


@pytest.mark.parametrize("text", ["", "x", "1000g", "-1", "10000000000000000", "1 000"])
def test_malformed_addresses(driven: Target, text: str) -> None:
    done = memlens("page", driven.pid, "--", text)
    assert done.code in (1, 2)
    refused(done, done.code)


@pytest.mark.parametrize("text", ["0", "1000", "ffffffffffffffff", "800000000000"])
def test_unmapped_addresses(driven: Target, text: str) -> None:
    refused(memlens("page", driven.pid, text), 1)


def test_ranges_that_cut_mappings(driven: Target) -> None:
    """Rounded outwards to pages; from the middle of one mapping into the next."""
    fd = driven.os("memfd_create", "memlens-test", 1)
    driven.os("ftruncate", fd, 46 * PAGE)
    driven.pwrite(fd, range(0, 46, 2))
    start = driven.mmap(46, flags=MAP_SHARED, fd=fd)
    half = start + 23 * PAGE
    driven.libc("mprotect", half, 23 * PAGE, READ_WRITE & ~2)
    where = f"{start + 20 * PAGE + 17:x}-{half + 3 * PAGE + 1:x}"  # pages 20 to 26
    done = memlens("map", driven.pid, "--json", "--pages", "--range", where)
    assert (done.code, done.err) == (0, "")
    assert pages_of(done) == {"cached": 4, "none": 3}
    first, second = ProcessMap.from_json(done.out).each
    assert (first.start, second.start) == (start, half)
    cached, none = PageClass.CACHED, PageClass.NONE
    assert list(first.runs) == [(20, 1, cached), (21, 1, none), (22, 1, cached)]
    assert second.runs.first.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("path", ["/", "/nonexistent", "/dev/null", "/sys"])
def test_a_proc_that_is_none(driven: Target, path: str) -> None:
    refused(memlens("map", driven.pid, "--proc", path), 1, path)


@contextmanager
def other_proc(where: Path, options: str) -> Iterator[Target]:
    """Mount a second proc, in the mounts of a target; commands run there by nsenter."""
    with target() as made:
        made.isolate_mounts()
        made.mount("proc", where, options)
        yield made


def _inside(holder: Target) -> tuple[str, ...]:
    return ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--")


def test_another_proc(driven: Target, tmp_path: Path) -> None:
    start = driven.mmap(23)
    driven.poke(start, range(7))
    arguments = ("map", driven.pid, "--json", f"--range={start:x}-{start + 23 * PAGE:x}")
    with other_proc(tmp_path / "proc", "") as holder:
        done = memlens(*arguments, "--proc", tmp_path / "proc", prefix=_inside(holder))
    assert (done.code, done.err) == (0, "")
    assert pages_of(done) == {"present": 7, "none": 16}


def test_a_proc_that_hides_the_processes_of_others(driven: Target, tmp_path: Path) -> None:
    """With hidepid=2 a process of others is not there at all; root sees all the same."""
    with target() as holder:
        holder.isolate_mounts()
        holder.mount("proc", Path("/proc"), "hidepid=2")
        inside = _inside(holder)
        as_root = memlens("map", driven.pid, "--json", prefix=inside)
        assert as_root.code == 0
        as_user = memlens_as_user(USER, "map", driven.pid, prefix=inside)
        refused(as_user, 1, str(driven.pid))


def test_a_terabyte_that_holds_nothing(driven: Target) -> None:
    """2^28 pages; twelve of them were ever touched."""
    terabyte = 1 << 40
    start = driven.libc("mmap", None, terabyte, READ_WRITE, 0x4022, -1, 0)
    touched = [page * 22_369_621 for page in range(12)]
    driven.poke(start, touched)
    done = memlens("map", driven.pid, "--json", "--pages")
    assert (done.code, done.err) == (0, "")
    found = ProcessMap.from_json(done.out)
    (mapping,) = [row for row in found.each if row.stop - row.start >= terabyte]
    shift = (start - mapping.start) // PAGE
    present = [run[0] - shift for run in mapping.runs if run[2] == PageClass.PRESENT]
    assert [page for page in present if 0 <= page < terabyte // PAGE] == touched
    assert mapping.counts().sum() == mapping.pages


def test_a_name_that_could_break_lines(machine: None, tmp_path: Path) -> None:
    """Control characters in names and paths do not reach the terminal as such."""
    path = tmp_path / "a\x1b[31m\nb c (deleted)"
    with target() as made:
        fd = made.os("open", str(path), os.O_RDWR | os.O_CREAT)
        made.os("ftruncate", fd, 23 * PAGE)
        made.mmap(23, flags=MAP_SHARED, fd=fd)
        made.libc("prctl", 15, b"x\x1b[2J)\n(\0")  # PR_SET_NAME
        done = memlens("map", made.pid)
        as_json = memlens("map", made.pid, "--json")
    assert done.code == as_json.code == 0
    assert "\x1b" not in done.out
    found = ProcessMap.from_json(as_json.out)
    assert found.process is not None
    assert found.process.name == "x\x1b[2J)\n("
    assert any("b c (deleted)" in row.path for row in found.mappings)


def test_a_process_that_ends_at_any_moment(machine: None) -> None:
    """Killed after a while that differs: a whole answer, or one line of error."""
    seen = set()
    for delay in range(8):
        with target() as made:
            made.mmap(5000)
            command = [sys.executable, "-m", "memlens", "map", str(made.pid), "--json"]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                try:
                    process.wait(delay * 0.05)
                except subprocess.TimeoutExpired:
                    pass
                os.kill(made.pid, signal.SIGKILL)
                out, err = process.communicate(timeout=60)
        if process.returncode == 0:
            assert len(ProcessMap.from_json(out).mappings)
            assert err == ""
        else:
            refused(Done(process.returncode, out, err), 1)
        seen.add(process.returncode)
    assert 1 in seen


def test_no_traceback_in_any_help(machine: None) -> None:
    done = memlens("--help")
    assert done.code == 0
    commands = re.findall(r"^  ([a-z]+) ", done.out, re.MULTILINE)
    assert {"map", "page", "doctor", "demo"} <= set(commands)
    for command in commands:
        assert memlens(command, "--help").code == 0
        refused(memlens(command, "--no-such-option"), 2)
