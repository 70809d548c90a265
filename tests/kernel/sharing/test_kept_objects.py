"""
What keeps shared memory besides the processes that have it: none of it is freed on exit.

Each case lets go of what kept the memory, while the process that has it does nothing: by so
much, to the page, what its exit frees must then rise.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memlens import SharedObject, list_processes, list_shared_memory
from tests.kernel.support import oracle
from tests.kernel.support.driver import MNT_DETACH, Target, target
from tests.kernel.support.machine import undone_at_exit
from tests.kernel.support.namespaces import MS_BIND, mount_tmpfs

PAGES = 499
LetGo = Callable[[], None]


@pytest.fixture
def driven() -> Iterator[Target]:
    with target() as driven:
        yield driven


def _freed(driven: Target) -> int:
    (row,) = list_processes([driven.pid]).processes
    assert row.freed_on_exit_pages is not None
    return row.freed_on_exit_pages


def _item(status: os.stat_result) -> SharedObject:
    key = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino
    (item,) = [o for o in list_shared_memory().objects if (o.device, o.inode) == key]
    return item


def _open_file(driven: Target, path: Path) -> int:
    """Have the target open a file of so many pages, and write it."""
    fd: int = driven.os("open", str(path), os.O_RDWR | os.O_CREAT, 0o600)
    driven.pwrite(fd, range(PAGES))
    return fd


def _under_a_loop_device(driven: Target, where: Path, stack: ExitStack) -> LetGo:
    path = where / "backing"
    _open_file(driven, path)
    device = subprocess.run(
        ["losetup", "--find", "--show", path], check=True, capture_output=True, text=True
    ).stdout.strip()
    detach = stack.enter_context(ExitStack())
    command = ["losetup", "--detach", device]
    detach.enter_context(undone_at_exit(lambda: subprocess.run(command, check=True)))
    path.unlink()
    return detach.close


def _mounted_over_a_file(driven: Target, where: Path, stack: ExitStack) -> LetGo:
    path, point = where / "file", _point(where)
    point.parent.mkdir()
    point.touch()
    _open_file(driven, path)
    assert oracle.libc.mount(bytes(path), bytes(point), None, MS_BIND, None) == 0
    unmount = stack.enter_context(ExitStack())
    # The target has opened it by way of the tmpfs, and not of this mount.
    undo = undone_at_exit(lambda: oracle.libc.umount2(bytes(point), MNT_DETACH))
    unmount.enter_context(undo)
    path.unlink()
    return unmount.close


def _point(where: Path) -> Path:
    return where.parent / "points" / "point"


def _mounted_below_another_mount(driven: Target, where: Path, stack: ExitStack) -> LetGo:
    let_go = _mounted_over_a_file(driven, where, stack)
    cover = stack.enter_context(ExitStack())
    mount_tmpfs(cover, _point(where).parent)

    def let_both_go() -> None:
        cover.close()
        let_go()

    return let_both_go


def _in_a_message(driven: Target, where: Path, stack: ExitStack) -> LetGo:
    # In no process that was forked: then pages would become the target's own as others write.
    receiver = stack.enter_context(target())
    name = f"\0memlens-{where}"
    bind = """
import socket
end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
end.bind(name)
result = end.detach()
"""
    number = receiver.run(bind, name=name)
    fd = driven.os("memfd_create", "in a message", 1)
    driven.pwrite(fd, range(PAGES))
    code = """
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
    end.connect(name)
    socket.send_fds(end, [b'f'], [fd])
"""
    driven.run(code, name=name, fd=fd)

    def receive() -> None:
        code = """
import socket
end = socket.socket(fileno=number)
for fd in socket.recv_fds(end, 1, 1)[1]:
    os.close(fd)
"""
        receiver.run(code, number=number)

    return receive


@pytest.mark.parametrize(
    "keep",
    [
        *(_under_a_loop_device, _mounted_over_a_file, _mounted_below_another_mount),
        _in_a_message,
    ],
)
def test_exit_does_not_free_what_something_else_keeps(
    keep: Callable[[Target, Path, ExitStack], LetGo], driven: Target, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        (where := tmp_path / "tmpfs").mkdir()
        mount_tmpfs(stack, where)
        let_go = keep(driven, where, stack)
        kept = _freed(driven)
        let_go()
        assert _freed(driven) - kept == PAGES


def test_what_may_be_in_a_message_is_said(driven: Target, tmp_path: Path) -> None:
    """Which descriptor it is cannot be known."""
    note = "that may be in messages that nobody has read, too"
    with ExitStack() as stack:
        receive = _in_a_message(driven, tmp_path, stack)
        assert any(note in text for text in list_processes([driven.pid]).notes)
        receive()
        assert not any(note in text for text in list_processes([driven.pid]).notes)


def test_a_kernel_that_does_not_tell_of_messages(
    driven: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = driven.os("memfd_create", "in a message or not", 1)
    driven.pwrite(fd, range(PAGES))
    freed = _freed(driven)
    monkeypatch.setenv("MEMLENS_DISABLE", "scm_fds")
    assert freed - _freed(driven) == PAGES
    notes = list_processes([driven.pid]).notes
    assert any("this kernel (before Linux 5.6) does not tell" in note for note in notes)


def test_a_file_that_is_mounted_has_a_place(driven: Target, tmp_path: Path) -> None:
    with ExitStack() as stack:
        (where := tmp_path / "tmpfs").mkdir()
        mount_tmpfs(stack, where)
        let_go = _mounted_over_a_file(driven, where, stack)
        status = os.stat(_point(where))
        assert status.st_nlink == 0
        item = _item(status)
        assert (item.name, item.marks) == (str(_point(where)), "")
        let_go()
        assert _item(status).marks == "deleted"


def test_a_loop_device_is_asked_and_not_changed(driven: Target, tmp_path: Path) -> None:
    with ExitStack() as stack:
        (where := tmp_path / "tmpfs").mkdir()
        mount_tmpfs(stack, where)
        _under_a_loop_device(driven, where, stack)
        before = subprocess.check_output(["losetup", "--list", "--raw"])
        _freed(driven)
        assert subprocess.check_output(["losetup", "--list", "--raw"]) == before
