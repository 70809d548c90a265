"""What goes wrong while ``memlens swap``, ``shm`` and ``ps`` look, and what they then say."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from memlens import (
    Inventory,
    SwapLedger,
    list_processes,
    list_shared_memory,
    read_swap_ledger,
)
from memlens.schema import json_schema
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.commands import DEADLINE_S, NOBODY, run
from tests.kernel.support.driver import CLONE_NEWNS, CLONE_NEWPID, MAP_SHARED, PAGE, target
from tests.kernel.support.fuse import hung_fuse
from tests.kernel.support.namespaces import mount_tmpfs
from tests.kernel.support.shared_memory import holders_of
from tests.kernel.support.standstill import again_if_moved, standing_still
from tests.kernel.support.swap import ON_ZRAM, used_pages
from tests.kernel.support.swapped_objects import swap_on, zram_devices
from tests.kernel.support.verdicts import GIVE_AWAY
from tests.kernel.workloads.base import page_out
from tests.kernel.workloads.shm_builder import fill
from tests.kernel.workloads.shm_mix import IPC_RMID, mixed

COMMANDS = ("swap", "shm", "ps")
SCHEMAS = {name: f"memlens.{name}/2" for name in COMMANDS}


# Each round forks a crowd, which ends at once, and now and then maps shared memory.
CROWD = """
import mmap, os
while True:
    children = []
    for number in range(40):
        pid = os.fork()
        if pid == 0:
            memory = mmap.mmap(-1, 4096 * 8)
            memory[0] = 1
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
"""


@contextmanager
def crowd() -> Iterator[None]:
    """Run processes that start and end all the while."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", CROWD]) as process:
        try:
            yield
        finally:
            process.kill()


@ON_ZRAM
def test_processes_that_end_meanwhile(swap: str) -> None:
    with target() as driven, crowd():
        fd = driven.os("memfd_create", "stays", 1)
        driven.os("ftruncate", fd, 23 * PAGE)
        start = driven.mmap(23, flags=MAP_SHARED, fd=fd)
        fill(driven, start, range(23))
        page_out(driven, start, range(11))
        private = driven.mmap(47)
        fill(driven, private, range(47))
        page_out(driven, private, range(41))
        for _ in range(5):
            found = list_shared_memory()
            (item,) = [o for o in found.objects if o.name == "memfd:stays"]
            assert [holder.pid for holder in holders_of(found, item)] == [driven.pid]
            ledger = read_swap_ledger()
            entries = [r.swap_entries_pages for r in ledger.processes if r.pid == driven.pid]
            assert entries == [41]
            rows = [row for row in list_processes().processes if row.pid == driven.pid]
            assert [row.swap_entries_pages for row in rows] == [41]
            # What cannot be read because it ended is no refusal.
            assert not [m for m in ledger.missed if "No such process" in m.reason]


def test_a_file_system_that_never_answers(tmp_path: Path) -> None:
    """Nothing of it may be asked; memory mapped from it is unknown, or what is mapped."""
    with hung_fuse(tmp_path) as hung:
        for command in (*([name] for name in COMMANDS), ["map", str(hung.mapper.pid)]):
            began = time.monotonic()
            done = run(*command, "--json")
            assert done.returncode == 0, done.stderr
            assert time.monotonic() - began < DEADLINE_S / 2
        mappings = json.loads(done.stdout)["tables"]["mappings"]
        (mapping,) = [m for m in mappings if m["path"].endswith("/hung/file")]
        # Two pages were touched; a fault may map their neighbour too.
        assert mapping["present_pages"] >= 2


@pytest.mark.parametrize("swap", ["none"], indirect=True)
def test_an_area_that_goes_meanwhile(swap: str) -> None:
    with zram_devices(1, 64 << 20) as (device,), swap_on(device), target() as driven:
        start = driven.mmap(1013)
        fill(driven, start, range(1013))
        page_out(driven, start, range(1009))
        gone: list[bool] = []

        def take_away(done: int, total: int) -> None:
            if not gone:
                subprocess.run(["swapoff", device], check=True)
                gone.append(True)

        ledger = read_swap_ledger(on_progress=take_away)
        assert gone
    assert not len(ledger.areas)
    swap = ledger.sums["swap"]
    assert swap["total_pages"] == 0
    assert swap["explained_pages"] + swap["remainder_pages"] == 0
    assert swap["drift_pages"] <= -1009
    assert any("changed from" in note for note in ledger.notes), ledger.notes


@ON_ZRAM
def test_nobody_sees_less_and_says_so(swap: str, squeeze: Squeeze, tmp_path: Path) -> None:
    with mixed(squeeze, swap, tmp_path) as mix:
        used = used_pages()
        ours = json.loads(run("swap", "--json").stdout)["sums"]["swap"]
        done = run("swap", "--json", is_nobody=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        theirs, missed = found["sums"]["swap"], found["missed"]
        assert theirs["total_pages"] == pytest.approx(used, abs=64)
        for name in ("private_pages", "shared_pages", "swap_cache_pages"):
            assert 0 <= theirs[name] <= ours[name]
        assert theirs["remainder_pages"] >= mix.objects_out
        assert theirs["remainder_pages"] > ours["remainder_pages"]
        assert any("of other users" in m["what"] + m["reason"] for m in missed) or any(
            "Permission denied" in m["reason"] for m in missed
        )
        text = run("swap", is_nobody=True)
        assert "remainder is of what was missed" in " ".join(text.stdout.split())
        assert run("swap", "--strict", is_nobody=True).returncode == 3


def test_a_tmpfs_that_may_not_be_read(tmp_path: Path) -> None:
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path, "mode=0700")
        (tmp_path / "secret").write_bytes(bytes(5 * PAGE))
        done = run("shm", "--json", is_nobody=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert str(tmp_path) not in " ".join(
            item["name"] for item in found["tables"]["objects"]
        )
        assert any(str(tmp_path) in missed["what"] for missed in found["missed"])


@ON_ZRAM
def test_json_as_documented_and_as_the_library(
    swap: str, squeeze: Squeeze, tmp_path: Path
) -> None:
    with mixed(squeeze, swap, tmp_path) as mix:

        def attempt() -> tuple[dict[str, Any], SwapLedger]:
            # The kernel may push out what was left in RAM: then hold it against that.
            for made in mix.objects:
                made.out = made.count_out()
            found = {name: json.loads(run(name, "--json").stdout) for name in COMMANDS}
            ledger = read_swap_ledger()
            mix.reprove()
            return found, ledger

        documents, ledger = again_if_moved(attempt)
    assert {name: found["schema"] for name, found in documents.items()} == SCHEMAS
    sums, swapped = documents["swap"]["sums"]["swap"], documents["swap"]["tables"]
    four = ("private_pages", "shared_pages", "swap_cache_pages", "remainder_pages")
    assert sum(sums[name] for name in four) == sums["total_pages"]
    assert set(swapped["areas"][0]) >= {"area", "path", "kind", "size_pages", "used_pages"}
    objects = {(o["kind"], o["device"], o["inode"]): o for o in swapped["objects"]}
    for made in mix.objects:
        item = objects[made.kind, made.device, made.inode]
        if "other_ipc_namespace" not in made.marks:
            assert item["swapped_pages"] + item["swap_cached_pages"] == made.out
        holders = [h["pid"] for h in swapped["holders"] if h["object"] == item["object"]]
        assert sorted(holders) == sorted(made.holders)
    own = {row["pid"]: row["swap_entries_pages"] for row in swapped["processes"]}
    rows = [row for row in ledger.processes if row.pid in mix.family]
    wanted = {row.pid: row.swap_entries_pages for row in rows}
    assert {pid: own[pid] for pid in wanted} == wanted
    for name, kind in (("swap", SwapLedger), ("shm", Inventory)):
        jsonschema.validate(documents[name], json_schema(kind))
    for row in documents["ps"]["tables"]["processes"]:
        assert set(row) >= {"pid", "name", "rss_pages", "pss_pages", "uss_pages"}
        assert set(row) >= {"swap_entries_pages", "swap_share_bytes", "freed_on_exit_pages"}


def test_one_object_page_by_page(tmp_path: Path) -> None:
    with ExitStack() as stack, target() as driven:
        mount_tmpfs(stack, tmp_path)
        path = tmp_path / "one"
        fd = driven.os("open", str(path), os.O_RDWR | os.O_CREAT)
        driven.os("ftruncate", fd, 23 * PAGE)
        start = driven.mmap(23, flags=MAP_SHARED, fd=fd)
        fill(driven, start, range(3, 7))
        driven.pwrite(fd, range(11, 13))
        status = path.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        names = (str(path), f"{driven.pid}:{fd}", f"inode:{device}:{status.st_ino}")
        for name in names:
            done = run("shm", name, "--json")
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            (item,) = found["tables"]["objects"]
            assert item["present_pages"] == 4
            assert item["cached_pages"] == 2
            assert [h["pid"] for h in found["tables"]["holders"]] == [driven.pid]
        assert run("shm", str(tmp_path / "none")).returncode in (1, 2)


def test_names_never_reach_the_terminal_raw(tmp_path: Path) -> None:
    name = "\x1b]0;title\x07\nspoof\r\x1b[2J\u202e"
    with ExitStack() as stack, target() as driven:
        mount_tmpfs(stack, tmp_path)
        (tmp_path / name).write_bytes(bytes(3001 * PAGE))
        fd = driven.os("memfd_create", "\x1b[31m\nfd", 1)
        driven.os("ftruncate", fd, 3001 * PAGE)
        fill(driven, driven.mmap(3001, flags=MAP_SHARED, fd=fd), range(3001))
        driven.run("open('/proc/self/comm', 'w').write('\\x1b[5m\\nx')")
        for command in (("shm",), ("ps", str(driven.pid)), ("shm", f"{driven.pid}:{fd}")):
            done = run(*command, "--no-color")
            assert done.returncode == 0, done.stderr
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", done.stdout), command
        found = json.loads(run("shm", "--json").stdout)
        names = [item["name"] for item in found["tables"]["objects"]]
        assert str(tmp_path / name) in names
        assert "memfd:\x1b[31m\nfd" in names


@ON_ZRAM
def test_a_pid_namespace_with_its_own_proc(swap: str, tmp_path: Path) -> None:
    """Seen from within only its own processes exist; the rest is remainder."""
    with target() as driven:
        outside = driven.mmap(61)
        fill(driven, outside, range(61))
        page_out(driven, outside, range(59))
        driven.libc("unshare", CLONE_NEWPID | CLONE_NEWNS)
        child = driven.fork()
        # What was paged out before the fork is the child's too.
        child.libc("munmap", outside, 61 * PAGE)
        start = child.mmap(97)
        fill(child, start, range(97))
        page_out(child, start, range(89))
        proc = tmp_path / "proc"
        child.mount("proc", proc)

        def attempt() -> tuple[int, SwapLedger]:
            with standing_still():
                ledger = read_swap_ledger(proc=f"/proc/{child.pid}/root{proc}")
                return used_pages(), ledger

        used, ledger = again_if_moved(attempt)
    assert [row.pid for row in ledger.processes] == [1]
    assert ledger.processes[0].swap_entries_pages == 89
    swap = ledger.sums["swap"]
    assert swap["total_pages"] == used
    assert swap["private_pages"] == 89
    assert swap["remainder_pages"] >= 59
    assert "processes that this /proc does not show" in {m.what for m in ledger.missed}
    assert any(note.startswith("the remainder is of what was missed") for note in ledger.notes)


def test_nobody_is_not_said_to_hold_what_others_may(tmp_path: Path) -> None:
    """Without privilege, or from within a PID namespace, most holders are not seen."""
    with ExitStack() as stack:
        # All may pass through: the directories of pytest are root's alone.
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where.chmod(0o755)
        mount_tmpfs(stack, where, "mode=0755")
        held = where / "held"
        held.write_bytes(bytes(5 * PAGE))
        held.chmod(0o644)
        driven = stack.enter_context(target())
        driven.libc("unshare", CLONE_NEWPID)
        child = driven.fork()
        driven.os("open", str(held), os.O_RDONLY)
        shmid = driven.libc("shmget", 0, 3 * PAGE, 0o1666)
        driven.libc("shmat", shmid, None, 0)
        child.isolate_mounts()
        proc = tmp_path / "proc"
        child.mount("proc", proc)
        within = list_shared_memory(proc=f"/proc/{child.pid}/root{proc}").objects
        done = run("shm", "--json", is_nobody=True)
        assert done.returncode == 0, done.stderr
        names = {str(held), f"sysv:{shmid}"}
        theirs = {o["name"]: o["marks"] for o in json.loads(done.stdout)["tables"]["objects"]}
        ours = {o.name: o.marks for o in list_shared_memory().objects}
        driven.libc("shmctl", shmid, IPC_RMID, None)
    assert names <= set(theirs)
    assert names <= set(ours)
    for name in names:
        assert "no_holder" not in theirs[name]
        assert "no_holder" not in ours[name]
    assert not [o.name for o in within if "no_holder" in o.marks]


@ON_ZRAM
def test_an_ordinary_user_sees_how_much_of_his_own_is_on_swap(swap: str) -> None:
    """Slots are hidden, and yet the process is not said to have none."""
    with target() as driven:
        start = driven.mmap(97)
        fill(driven, start, range(97))
        page_out(driven, start, range(89))
        driven.run(GIVE_AWAY, uid=NOBODY)
        done = run("swap", "--json", is_nobody=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        (row,) = [row for row in found["tables"]["processes"] if row["pid"] == driven.pid]
        swapped = _vm_swap_pages(driven.pid)
    assert row["swap_entries_pages"] == swapped >= 89
    for name in ("swap_only_mine_pages", "swap_share_bytes", "freed_on_exit_pages"):
        assert row[name] is None
    assert found["sums"]["swap"]["private_pages"] == 0
    assert any("slots are hidden" in missed["reason"] for missed in found["missed"])


def _vm_swap_pages(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmSwap:"):
            return int(line.split()[1]) * 1024 // PAGE
    raise ValueError(f"no VmSwap of {pid}")
