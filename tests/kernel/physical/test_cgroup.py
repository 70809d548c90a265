"""memlens cgroup on a cgroup of our own, whose charges are made and known."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlens.errors import MemlensError
from memlens.kernel.cgroups import find_hierarchy
from memlens.kernel.procfs import Host
from memlens.physical.cgroup import list_cgroups, read_cgroup
from memlens.physical.flagreport import resolve_cgroup
from memlens.physical.hugereport import list_cgroup_pids
from memlens.physical.records import CgroupPages
from memlens.scan.machine import Machine
from tests.kernel.support import driver, oracle
from tests.kernel.support.cgroups import Cgroup, Squeeze
from tests.kernel.support.driver import (
    HUGE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    Target,
)

PRIVATE, SHARED, OF_FILE = 1009, 401, 307


@pytest.fixture
def target() -> Iterator[Target]:
    with driver.target() as made:
        yield made


@pytest.fixture
def cgroup(squeeze: Squeeze) -> Iterator[Cgroup]:
    with squeeze.cgroup() as made:
        yield made


def pages(result: CgroupPages, kind: str, state: str | None = None) -> int:
    rows = (row for row in result.kinds if row.kind == kind)
    return sum(row.pages for row in rows if state in (None, row.state))


def name_of(cgroup: Cgroup) -> str:
    return str(cgroup.path)[len(find_hierarchy(Host()).root) :]


def test_kinds_owners_and_memory_stat(tmp_path: Path, target: Target, cgroup: Cgroup) -> None:
    path = tmp_path / "file"
    with cgroup.charging(target.pid):
        private = target.mmap(PRIVATE)
        target.poke(private, range(PRIVATE))
        memory = target.os("memfd_create", "charged", 0)
        target.os("ftruncate", memory, SHARED * PAGE)
        target.pwrite(memory, range(SHARED))
        fd = target.os("open", bytes(path), os.O_RDWR | os.O_CREAT)
        target.pwrite(fd, range(OF_FILE))
        result = read_cgroup(str(cgroup.path))
    assert result.total.path == name_of(cgroup)
    # The interpreter of the target takes a few pages of its own.
    assert PRIVATE <= pages(result, "anonymous") < PRIVATE + 64
    assert pages(result, "shmem", "cached") == SHARED
    assert OF_FILE <= pages(result, "file") < OF_FILE + 64
    owners = {row.pid: row for row in result.processes}
    assert owners[target.pid].pages == pytest.approx(pages(result, "anonymous"), abs=8)
    if not any("page-cache walk" in note for note in result.notes):
        files = {row.path: row.pages for row in result.files}
        assert files["/memfd:charged (deleted)"] == SHARED
        assert files[str(path)] == OF_FILE
    assert len(result.stat)
    for line in result.stat:
        # The kernel sums up in batches of 64 pages for each CPU, in one cgroup.
        assert abs(line.difference_pages) <= 64 * (os.cpu_count() or 1), line


def test_charged_here_used_elsewhere(target: Target, cgroup: Cgroup) -> None:
    memory = target.os("memfd_create", "lent", 0)
    target.os("ftruncate", memory, SHARED * PAGE)
    with cgroup.charging(target.pid):
        target.pwrite(memory, range(SHARED))
    # Back at home: what it maps now is charged to the cgroup that it has left.
    start = target.mmap(SHARED, protection=PROT_READ, flags=MAP_SHARED, fd=memory)
    target.madvise(start, range(SHARED), driver.MADV_RANDOM)
    target.peek(start, range(100))
    lent = read_cgroup(str(cgroup.path))
    used = sum(row.pages for row in lent.used_elsewhere)
    assert used == lent.total.only_elsewhere_pages
    assert 100 <= used < 100 + 64  # a fault may map its neighbours
    home = Path(f"/proc/{target.pid}/cgroup").read_text().splitlines()
    (line,) = (line for line in home if "memory" in line.split(":")[1].split(","))
    if line.split(":")[2] != "/":
        borrowed = read_cgroup(line.split(":")[2])
        rows = {row.cgroup: row.pages for row in borrowed.charged_elsewhere}
        assert rows[name_of(cgroup)] == used


def test_below_counts_in(target: Target, cgroup: Cgroup) -> None:
    below = Cgroup(cgroup.path / "below")
    below.path.mkdir()
    try:
        with below.charging(target.pid):
            start = target.mmap(PRIVATE)
            target.poke(start, range(PRIVATE))
            result = read_cgroup(name_of(cgroup))
            listed = {row.path: row for row in list_cgroups().cgroups}
            start = target.libc("munmap", start, PRIVATE * PAGE)
    finally:
        driver_wait_rmdir(below.path)
    assert result.total.cgroups == 2
    assert pages(result, "anonymous") >= PRIVATE
    assert listed[f"{name_of(cgroup)}/below"].anonymous_pages >= PRIVATE
    assert name_of(cgroup) not in listed


def driver_wait_rmdir(path: Path) -> None:
    from tests.kernel.support.machine import wait_until

    def is_gone() -> bool:
        try:
            path.rmdir()
        except OSError:
            return False
        return True

    wait_until(is_gone, f"rmdir {path}")


def test_command_line(cgroup: Cgroup, target: Target) -> None:
    with cgroup.charging(target.pid):
        start = target.mmap(PRIVATE)
        target.poke(start, range(PRIVATE))
        done = subprocess.run(
            [sys.executable, "-m", "memlens", "cgroup", "--json", name_of(cgroup)],
            check=True,
            capture_output=True,
            text=True,
        )
    found = json.loads(done.stdout)
    assert found["schema"] == "memlens.cgroup/2"
    tables, total = found["tables"], found["sections"]["total"]
    assert total["charged_pages"] == sum(row["pages"] for row in tables["kinds"])
    owned = sum(row["pages"] for row in (*tables["files"], *tables["processes"]))
    kernel = sum(row["pages"] for row in tables["kinds"] if row["kind"] == "kernel")
    assert owned + kernel + total["unowned_pages"] == total["charged_pages"]


def test_no_such_cgroup() -> None:
    command = [sys.executable, "-m", "memlens", "cgroup", "/no/such/cgroup"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no such cgroup" in done.stderr


def test_a_cgroup_by_every_name_of_it(cgroup: Cgroup, target: Target) -> None:
    with cgroup.charging(target.pid):
        target.poke(target.mmap(PRIVATE), range(PRIVATE))
    name = name_of(cgroup)
    around = f"{name}/../{Path(name).name}"
    for path in (name, f"{name}/", name[1:], around, str(cgroup.path), f"{cgroup.path}/."):
        result = read_cgroup(path)
        assert result.total.path == name
        assert pages(result, "anonymous") >= PRIVATE


def test_cgroups_of_other_hierarchies_are_refused(tmp_path: Path) -> None:
    """Their numbers are other cgroups' in the hierarchy of the memory controller."""
    options = f"none,name=memlens-{os.getpid()}"
    subprocess.run(["mount", "-t", "cgroup", "-o", options, "none", tmp_path], check=True)
    try:
        assert (tmp_path / "cgroup.procs").exists()
        machine = Machine()
        for look in (resolve_cgroup, list_cgroup_pids):
            with pytest.raises(MemlensError, match="the memory controller is mounted on"):
                look(str(tmp_path), machine)
        with pytest.raises(MemlensError, match="the memory controller is mounted on"):
            read_cgroup(str(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_part_of_a_huge_page_given_back_is_not_present(cgroup: Cgroup, target: Target) -> None:
    """The flag "mapped" is of the whole folio; the page table knows better."""
    size = HUGE // PAGE
    with cgroup.charging(target.pid):
        start = target.mmap(size, align=HUGE)
        target.libc("madvise", start, HUGE, MADV_HUGEPAGE)
        before = pages(read_cgroup(str(cgroup.path)), "anonymous", "present")
        target.poke(start, [0])
        assert (oracle.read_pagemap(target.pid, start, size) >= oracle.PRESENT).all(), (
            "no huge page"
        )
        target.madvise(start, range(100, 400), MADV_DONTNEED)
        mapped = int((oracle.read_pagemap(target.pid, start, size) >= oracle.PRESENT).sum())
        result = read_cgroup(str(cgroup.path))
    assert mapped == size - 300
    # The interpreter of the target takes a few pages of its own.
    assert 0 <= pages(result, "anonymous", "present") - before - mapped < 16
    # The kernel splits such a page when it pleases, and then has the rest back.
    assert pages(result, "anonymous", "unmapped") in (0, 300)
    (line,) = (line for line in result.stat if line.name in ("total_rss", "anon"))
    assert line.found_pages == pages(result, "anonymous", "present")


def test_where_only_one_cgroup_is_mounted(target: Target, cgroup: Cgroup) -> None:
    """As in a container without a cgroup namespace: paths are those of /proc/PID/cgroup."""
    root, name = find_hierarchy(Host()).root, name_of(cgroup)
    with cgroup.charging(target.pid):
        target.poke(target.mmap(PRIVATE), range(PRIVATE))
    script = f"mount --bind {cgroup.path} {root} && exec {sys.executable} -m memlens cgroup"
    for path in (name, "/", root):
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f"{script} {path} --json"],
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        assert found["sections"]["total"]["path"] == name
        rows = found["tables"]["kinds"]
        kinds = {(row["kind"], row["state"]): row["pages"] for row in rows}
        assert kinds["anonymous", "present"] >= PRIVATE
