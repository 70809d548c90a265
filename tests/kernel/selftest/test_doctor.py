"""What readers of every privilege see, asked of the real kernel."""

import ctypes
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import validate

import memlens
from memlens.errors import AccessDenied
from memlens.kernel.kpage import KpageFile, read_kpagecount, read_kpageflags
from memlens.kernel.procfs import Host
from memlens.kernel.swaps import read_swap
from memlens.schema import json_schema

PAGE = os.sysconf("SC_PAGE_SIZE")
USER = 12345
KPF_ANON = 1 << 12
PM_PFN = (1 << 55) - 1

# Interfaces whose answer depends on who asks, and what each set of capabilities gives to
# user 0 over processes of another user; docs/how-it-works/permissions.md holds the table.
JUDGED = {"map_files", "cachewalk", "other_smaps", "other_pagemap", "other_map_files", "pfns"}
JUDGED |= {"kpageflags", "kpagecount"}
FRAMES = {"pfns", "kpageflags", "kpagecount"}
OTHERS = {"other_smaps", "other_pagemap", "other_map_files"}
CAPABILITIES = {
    "": set(),
    "+perfmon": {"other_smaps"},
    "+sys_ptrace": {"other_smaps"},
    "+dac_read_search": set(),
    "+checkpoint_restore": {"map_files"},
    "+bpf,+perfmon": {"cachewalk", "other_smaps"},
    "+sys_admin": {"map_files", "cachewalk", "other_smaps", *FRAMES},
    "+perfmon,+dac_read_search": {"other_smaps", "other_pagemap"},
    "+sys_ptrace,+dac_read_search": {"other_smaps", "other_pagemap"},
    "+sys_ptrace,+checkpoint_restore,+dac_read_search": {"map_files", *OTHERS},
    "+sys_ptrace,+sys_admin,+dac_read_search": JUDGED,
}

LEAST = ("sys_ptrace", "sys_admin", "dac_read_search", "fowner")


@pytest.fixture(scope="module")
def someone() -> Iterator[int]:
    """Yield an ordinary process of another user than those that look."""
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, user=USER, group=USER
    ) as process:
        yield process.pid
        process.communicate()


def available(document: dict[str, Any]) -> set[str]:
    return {row["name"] for row in document["tables"]["interfaces"] if row["is_available"]}


def capabilities(document: dict[str, Any]) -> set[str]:
    return {row["name"] for row in document["tables"]["capabilities"]}


def doctor(*prefix: str) -> dict[str, Any]:
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "memlens", "doctor", "--json"],
        capture_output=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    validate(document, json_schema(memlens.Features))
    return document


def as_user(uid: int, call: Callable[[], Any]) -> Any:
    """Return what a call gives to another user; modules must have been imported before."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
            os.write(sending, json.dumps(call()).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with open(receiving) as answer:
        raw = answer.read()
    os.waitpid(pid, 0)
    return json.loads(raw)


def test_root_has_everything_that_this_kernel_has() -> None:
    found = memlens.probe_features()
    refused = {probe.name: probe.reason for probe in found.missing()}
    # Both depend on how the kernel was built; the others are older than any that is tested.
    for name in ("page_idle", "soft_dirty", "guard", "uffd_wp", "uffd_wp_async"):
        refused.pop(name, None)
    for name in ("pagemap_scan", "cachestat", "cachewalk"):
        if name in refused and "Linux" in found.probe(name).needs:
            refused.pop(name)
    assert refused == {}


@pytest.mark.parametrize("given", CAPABILITIES, ids=lambda given: given or "none")
def test_what_capabilities_give_to_user_0(someone: int, given: str) -> None:
    kept = ",".join(filter(None, ("-all", given)))
    document = doctor("setpriv", f"--bounding-set={kept}")
    names = {f"CAP_{name.upper()}" for name in given.replace("+", "").split(",") if name}
    assert capabilities(document) == names
    expected = CAPABILITIES[given]
    if not memlens.probe_features().has("cachewalk"):
        expected = expected - {"cachewalk"}
    assert available(document) & JUDGED == expected
    reasons = [
        row["reason"] for row in document["tables"]["interfaces"] if row["group"] == "other"
    ]
    assert not any("is to be seen" in reason for reason in reasons), reasons


def test_what_a_service_with_few_capabilities_sees(someone: int) -> None:
    """The least for everything, as a user other than 0."""
    names = ",".join(f"+{name}" for name in LEAST)
    document = doctor(
        *("setpriv", f"--reuid={USER + 1}", f"--regid={USER + 1}", "--clear-groups"),
        *(f"--inh-caps={names}", f"--ambient-caps={names}", f"--bounding-set=-all,{names}"),
    )
    assert document["sections"]["reader"]["uid"] == USER + 1
    expected = {*JUDGED, "unwritable_files", "kpagecgroup"}
    if not memlens.probe_features().has("cachewalk"):
        expected.discard("cachewalk")
    assert expected <= available(document)
    levels = [row["level"] for row in document["tables"]["outlooks"]]
    assert levels == [row.level for row in memlens.probe_features().outlooks]


def test_an_ordinary_user(someone: int) -> None:
    def look() -> dict[str, Any]:
        found = memlens.probe_features()
        return {
            "uid": found.reader.uid,
            "capabilities": [row.name for row in found.capabilities],
            "missing": {probe.name: [probe.reason, probe.needs] for probe in found.missing()},
        }

    found = as_user(USER + 1, look)
    assert (found["uid"], found["capabilities"]) == (USER + 1, [])
    missing = found["missing"]
    assert JUDGED | {"unwritable_files", "kpagecgroup"} <= set(missing)
    assert not {"pagemap", "smaps", "seek_data", "mincore", "swap_areas"} & set(missing)
    # A file that this user can neither write nor own: mincore calls all of it resident.
    assert "even past its end" in missing["unwritable_files"][0]
    assert "CAP_SYS_ADMIN" in missing["pfns"][1]
    assert "CAP_SYS_PTRACE" in missing["other_pagemap"][1]


def test_an_ordinary_user_is_told_what_a_map_leaves_open() -> None:
    def look() -> list[list[Any]]:
        found = memlens.probe_features()
        gaps = [gap.scope for gap in found.gaps]
        return [[row.scope, row.level, gaps.count(row.scope)] for row in found.outlooks]

    levels = {scope: (level, gaps) for scope, level, gaps in as_user(USER, look)}
    assert levels["own"][0] == "part"
    assert levels["own"][1] >= 3
    assert levels["other"][0] == "nothing"
    assert levels["frames"][0] == "nothing"


def test_root_of_a_user_namespace() -> None:
    document = doctor("unshare", "--user", "--map-root-user")
    assert "CAP_SYS_ADMIN" in capabilities(document)
    assert document["sections"]["reader"]["is_init_user_namespace"] is False
    assert any("user namespace" in note for note in document["notes"])
    assert not available(document) & (FRAMES | {"map_files", "cachewalk"})


def test_a_pid_namespace_is_noted() -> None:
    document = doctor("unshare", "--pid", "--fork", "--mount-proc")
    assert document["sections"]["reader"]["is_init_pid_namespace"] is False
    assert any("PID namespace" in note for note in document["notes"])
    assert {"pagemap", "pfns"} <= available(document)


def test_a_proc_that_hides_this_process(tmp_path: Path) -> None:
    """The /proc of another PID namespace, as of a container."""
    script = f"mount -t proc proc {tmp_path} && echo ready && cat && umount {tmp_path}"
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            found = memlens.probe_features(str(tmp_path))
        finally:
            process.communicate()
    assert found.reader.proc == str(tmp_path)
    assert found.has("pagemap")
    assert any("does not show this process" in note for note in found.notes)


def test_an_interface_that_is_switched_off_is_not_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", "pagemap_scan,map_files")
    found = memlens.probe_features()
    assert found.probe("map_files").is_switched_off
    assert not found.has("uffd_wp_async")
    assert found.has("pagemap")


def test_soft_dirty_agrees_with_how_the_kernel_was_built() -> None:
    """clear_refs takes the 4 either way; smaps names the flag only if there is one."""
    smaps = Path("/proc/self/smaps").read_text()
    is_built = any(" sd" in line for line in smaps.split("\n") if line.startswith("VmFlags"))
    assert memlens.probe_features().has("soft_dirty") == is_built


def test_page_idle_agrees_with_sysfs() -> None:
    is_built = Path("/sys/kernel/mm/page_idle/bitmap").exists()
    assert memlens.probe_features().has("page_idle") == is_built


def own_pfns(memory: mmap.mmap, pages: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        raw = os.pread(fd, pages * 8, address // PAGE * 8)
    finally:
        os.close(fd)
    return np.frombuffer(raw, np.uint64) & np.uint64(PM_PFN)


def test_kpage_files_know_our_own_pages() -> None:
    pages = 23
    with mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"x" * pages * PAGE)
        pfns = own_pfns(memory, pages)
        assert len(set(pfns.tolist())) == pages
        backwards = pfns[::-1].copy()
        assert (read_kpagecount(backwards, Host()) == 1).all()
        assert (read_kpageflags(backwards, Host()) & np.uint64(KPF_ANON) != 0).all()


def test_a_page_shared_after_fork_is_mapped_twice() -> None:
    waiting, release = os.pipe()
    with mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"x" * PAGE)
        pid = os.fork()
        if pid == 0:
            os.close(release)
            os.read(waiting, 1)
            os._exit(0)
        try:
            assert read_kpagecount(own_pfns(memory, 1), Host()).tolist() == [2]
        finally:
            os.close(release)
            os.waitpid(pid, 0)
            os.close(waiting)
        assert read_kpagecount(own_pfns(memory, 1), Host()).tolist() == [1]


def test_kpage_files_end_where_memory_ends() -> None:
    with KpageFile("kpageflags", Host()) as file:
        assert len(file.read_range(1 << 50, 10)) == 0
        assert len(file.read_range(1, 10_000)) == 10_000


def test_kpage_files_are_closed_to_ordinary_users() -> None:
    def look() -> list[str]:
        try:
            KpageFile("kpagecount", Host())
        except AccessDenied as error:
            return [error.path, error.needs]
        return []

    path, needs = as_user(USER, look)
    assert path == "/proc/kpagecount"
    assert "root" in needs


@pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
def test_swap_areas_and_their_kind(swap: str) -> None:
    found = read_swap(Host())
    mine = [area for area in found.areas if area.kind == swap]
    assert len(mine) == 1
    raw = Path("/proc/swaps").read_text().split("\n")[1:]
    sizes = [int(line.split()[2]) for line in raw if line]
    assert [area.size_pages * (PAGE >> 10) for area in found.areas] == sizes
    assert [zram.device for zram in found.zram] == [
        area.device for area in found.areas if area.device
    ]
    assert memlens.probe_features().areas[mine[0].line].path == mine[0].path
