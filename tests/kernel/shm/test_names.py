"""Names of shared-memory objects as users give them, also where nothing may ever answer."""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.support.commands import DEADLINE_S, run
from tests.kernel.support.driver import MAP_SHARED, PAGE, Target, target
from tests.kernel.support.fuse import hung_fuse
from tests.kernel.support.machine import wait_until
from tests.kernel.support.namespaces import CLONE_FILES, NR_EXIT, mount_tmpfs, start_thread
from tests.kernel.support.target import send


def _make(driven: Target, name: str) -> int:
    fd: int = driven.os("memfd_create", name, 1)
    driven.os("ftruncate", fd, 7 * PAGE)
    driven.poke(driven.mmap(7, flags=MAP_SHARED, fd=fd), range(3))
    return fd


def _named(name: str) -> str:
    done = run("shm", name, "--json")
    assert done.returncode == 0, done.stderr
    (item,) = json.loads(done.stdout)["tables"]["objects"]
    return str(item["name"])


def _close_but_for_a_thread(driven: Target, fd: int) -> None:
    start_thread(driven, CLONE_FILES)
    driven.os("close", fd)


def _end_the_first_thread(driven: Target, fd: int) -> None:
    start_thread(driven, 0)
    # Nobody answers this: exit(2) ends one thread.
    send(driven.channel, ("run", ("libc.syscall(number, 0)",), {"values": {"number": NR_EXIT}}))
    stat = Path(f"/proc/{driven.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")


@pytest.mark.parametrize("leave", [_close_but_for_a_thread, _end_the_first_thread])
def test_a_descriptor_that_only_a_thread_has(
    machine: None, leave: Callable[[Target, int], None]
) -> None:
    with target() as driven:
        fd = _make(driven, "of a thread")
        leave(driven, fd)
        assert _named(f"{driven.pid}:{fd}") == "memfd:of a thread"


def test_a_file_system_that_never_answers_is_refused(machine: None, tmp_path: Path) -> None:
    with hung_fuse(tmp_path) as hung:
        pid, root = hung.mapper.pid, f"/proc/{hung.mapper.pid}/root"
        fds = os.listdir(f"/proc/{pid}/fd")
        (fd,) = [n for n in fds if os.readlink(f"/proc/{pid}/fd/{n}").endswith("/hung/file")]
        link = tmp_path / "link"
        link.symlink_to(f"{root}{hung.where}")
        names = (
            *(f"{pid}:{fd}", f"/proc/{pid}/fd/{fd}"),
            *(f"{root}{hung.where}/file", f"{root}{hung.where}"),
        )
        # Where a link leads to no table names what is mounted: it is asked, and not for long.
        reasons = dict.fromkeys(names, "fuse could hang the reader")
        reasons[f"{link}/never/seen"] = "its file system does not answer"
        for name, reason in reasons.items():
            began = time.monotonic()
            done = run("shm", name)
            assert time.monotonic() - began < DEADLINE_S / 2
            assert done.returncode == 1, name
            assert reason in done.stderr, name


def test_paths_lead_where_the_kernel_leads(tmp_path: Path, machine: None) -> None:
    with ExitStack() as stack:
        driven = stack.enter_context(target())
        top = tmp_path / "top"
        top.mkdir()
        mount_tmpfs(stack, top)
        (top / "sub").mkdir()
        (top / "file").write_bytes(b"x")
        (top / "sub" / "relative").symlink_to("../file")
        (tmp_path / "absolute").symlink_to(top / "sub" / "relative")
        (tmp_path / "round").symlink_to("round")
        fd = _make(driven, "by its link")
        name = str(top / "file")
        for path in (
            *(top / "file", top / "sub" / ".." / "file", top / "sub" / "relative"),
            *(tmp_path / "absolute", f"/proc/self/root{top}/./sub//relative"),
        ):
            assert _named(str(path)) == name, path
        assert _named(f"/proc/{driven.pid}/fd/{fd}") == "memfd:by its link"
        done = run("shm", str(tmp_path / "round"))
        assert done.returncode == 1
        assert "symbolic links" in done.stderr
        done = run("shm", str(tmp_path / "absolute" / "further"))
        assert "Not a directory" in done.stderr
        assert "no such shared-memory object" in run("shm", "").stderr
