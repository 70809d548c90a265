"""What the inventory reaches while processes end, and what it says of what it does not."""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from memlens import Inventory, SharedObject, list_shared_memory
from tests.kernel.support import oracle
from tests.kernel.support.commands import run
from tests.kernel.support.driver import MAP_SHARED, MNT_DETACH, PAGE, Target, target
from tests.kernel.support.machine import undone_at_exit
from tests.kernel.support.namespaces import CLONE_NEWIPC, MS_BIND, mount_tmpfs, start_thread
from tests.kernel.support.shared_memory import marks_of


def _below(found: Inventory, where: Path) -> list[str]:
    prefix = f"{where}/"
    return sorted(o.name.removeprefix(prefix) for o in found.objects if prefix in o.name)


def _sized(found: Inventory, pages: int) -> list[SharedObject]:
    return [o for o in found.objects if o.kind == "sysv" and o.size_bytes == pages * PAGE]


def _file_of_mounts(driven: Target, where: Path) -> Callable[[Inventory], bool]:
    driven.isolate_mounts()
    driven.mount("tmpfs", where)
    driven.run("open(path, 'w').close()", path=str(where / "stays"))
    return lambda found: _below(found, where) == ["stays"]


def _segment_of_a_namespace(driven: Target, where: Path) -> Callable[[Inventory], bool]:
    driven.libc("unshare", CLONE_NEWIPC)
    driven.libc("shmget", 0, 409 * PAGE, 0o1600)
    return lambda found: len(_sized(found, 409)) == 1


@pytest.mark.parametrize("make", [_file_of_mounts, _segment_of_a_namespace])
@pytest.mark.parametrize("moment", ["at once", "after the processes"])
def test_the_first_process_of_a_namespace_ends_meanwhile(
    machine: None,
    tmp_path: Path,
    make: Callable[[Target, Path], Callable[[Inventory], bool]],
    moment: str,
) -> None:
    """Another one is in it still."""
    with target() as driven:
        is_found = make(driven, tmp_path / "own")
        driven.fork().libc("prctl", 1, 0, 0, 0, 0)
        ended: list[int] = []

        def end(done: int, total: int) -> None:
            if not ended and (moment == "at once" or done == total):
                os.kill(driven.pid, signal.SIGKILL)
                os.waitid(os.P_PID, driven.pid, os.WEXITED | os.WNOWAIT)
                ended.append(driven.pid)

        assert is_found(list_shared_memory(on_progress=end))
        assert ended


def test_a_detached_segment_of_a_thread_s_namespace(machine: None) -> None:
    with target() as driven:
        start_thread(driven, CLONE_NEWIPC, "libc.shmget(0, size, 0o1600)", size=401 * PAGE)
        (item,) = _sized(list_shared_memory(), 401)
        assert marks_of(item) == {"no_holder", "detached", "other_ipc_namespace"}


def test_a_segment_of_a_namespace_that_is_only_open_may_stay(machine: None) -> None:
    """No process is in it, and yet it does not go with the one that has it attached."""
    with target() as driven, target() as keeper:
        driven.libc("unshare", CLONE_NEWIPC)
        shmid = driven.libc("shmget", 0, 403 * PAGE, 0o1600)
        driven.libc("shmat", shmid, None, 0)
        keeper.os("open", f"/proc/{driven.pid}/ns/ipc", os.O_RDONLY)
        driven.libc("unshare", CLONE_NEWIPC)
        (item,) = _sized(list_shared_memory(), 403)
        assert "deleted" not in item.marks
        assert item.sole_keeper is None


@pytest.mark.parametrize("mode", [0o700, 0o744], ids=["not read", "not searched"])
def test_directories_that_may_not_be_read_are_named(mode: int) -> None:
    with ExitStack() as stack:
        # All may pass through: the directories of pytest are root's alone.
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where.chmod(0o755)
        mount_tmpfs(stack, where, "mode=0755")
        (where / "open").write_bytes(bytes(PAGE))
        (where / "closed").mkdir()
        (where / "closed" / "secret").write_bytes(bytes(5 * PAGE))
        (where / "closed").chmod(mode)
        done = run("shm", "--json", is_nobody=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
    names = [item["name"] for item in found["tables"]["objects"]]
    assert str(where / "open") in names
    assert str(where / "closed" / "secret") not in names
    closed = str(where / "closed")
    reasons = [m["reason"] for m in found["missed"] if closed in m["what"]]
    assert reasons == ["Permission denied"]
    (note,) = [note for note in found["notes"] if str(where) in note]
    assert "5 pages" in note
    assert "directories that could not be read" in note


def test_a_covered_tmpfs_is_missed_though_a_part_of_it_is_listed(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    with ExitStack() as stack:
        whole.mkdir()
        part.mkdir()
        mount_tmpfs(stack, whole)
        (whole / "below").mkdir()
        (whole / "below" / "listed").touch()
        (whole / "covered").touch()
        _bind(stack, whole / "below", part)
        mount_tmpfs(stack, whole)
        found = list_shared_memory()
    assert _below(found, tmp_path) == ["part/listed"]
    assert f"tmpfs on {whole}" in [missed.what for missed in found.missed]


def test_a_part_of_a_tmpfs_mounted_over_all_of_it(tmp_path: Path) -> None:
    """Device and place are those of the whole, which is covered all the same."""
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / "listed").touch()
        (tmp_path / "covered").touch()
        _bind(stack, tmp_path / "below", tmp_path)
        found = list_shared_memory()
    assert _below(found, tmp_path) == ["listed"]
    assert f"tmpfs on {tmp_path}" in [missed.what for missed in found.missed]


def test_a_file_below_a_mount_over_a_file(tmp_path: Path, machine: None) -> None:
    """What is covered here may be a file, which another place shows."""
    one, two = tmp_path / "one", tmp_path / "two"
    with ExitStack() as stack:
        one.mkdir()
        two.mkdir()
        mount_tmpfs(stack, one)
        (one / "covered").write_bytes(b"x")
        _bind(stack, one, two)
        (tmp_path / "other").touch()
        _bind(stack, tmp_path / "other", one / "covered")
        found = list_shared_memory()
    assert _below(found, tmp_path) == ["two/covered"]


def _bind(stack: ExitStack, source: Path, place: Path) -> None:
    libc = oracle.libc
    assert libc.mount(bytes(source), bytes(place), None, MS_BIND, None) == 0
    stack.enter_context(undone_at_exit(lambda: libc.umount2(bytes(place), MNT_DETACH)))


def test_an_end_while_files_are_listed(tmp_path: Path) -> None:
    """Not only after all of them: what was not listed by then is named."""
    is_over: list[bool] = []
    with ExitStack() as stack:
        mount_tmpfs(stack, tmp_path)
        (tmp_path / "file").touch()
        # The first progress that is told of all processes comes before files are listed.
        found = list_shared_memory(
            on_progress=lambda done, total: is_over.append(done == total),
            should_stop=lambda: any(is_over),
        )
    assert not found.is_complete
    assert _below(found, tmp_path) == []
    assert "files of tmpfs and System V segments not listed by then" in [
        missed.what for missed in found.missed if missed.reason == "the scan was stopped"
    ]


def test_a_deleted_file_held_by_way_of_an_overlay(tmp_path: Path) -> None:
    """A process holds it and not the kernel alone: the note must not say so."""
    upper, lower, merged = (tmp_path / name for name in ("upper", "lower", "merged"))
    with ExitStack() as stack:
        driven = stack.enter_context(target())
        driven.isolate_mounts()
        for place in (lower, merged):
            place.mkdir()
        driven.mount("tmpfs", upper)
        for name in ("files", "work"):
            driven.os("mkdir", str(upper / name))
        options = f"lowerdir={lower},upperdir={upper}/files,workdir={upper}/work"
        driven.mount("overlay", merged, options)
        fd = driven.os("open", str(merged / "file"), os.O_RDWR | os.O_CREAT)
        driven.os("ftruncate", fd, 11 * PAGE)
        driven.poke(driven.mmap(11, flags=MAP_SHARED, fd=fd), range(11))
        driven.os("unlink", str(merged / "file"))
        (note,) = [n for n in list_shared_memory().notes if f"tmpfs on {upper}: " in n]
    assert "11 pages" in note
    assert "held by a process by way of an overlay" in note
