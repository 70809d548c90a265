"""
Shared memory where only threads, other namespaces and other mounts lead; built without memlens.

Each function builds one object, as in ``shm_holders``.
"""

import os
from pathlib import Path

from tests.kernel.support.driver import (
    MAP_SHARED,
    MNT_DETACH,
    PAGE,
    PROT_READ,
    Target,
)
from tests.kernel.support.namespaces import (
    CLONE_NEWIPC,
    MS_BIND,
    mount_in_a_thread,
    mount_tmpfs,
    start_thread,
)
from tests.kernel.workloads.shm_builder import Builder, Made, count_evicted, fresh
from tests.kernel.workloads.shm_mix import IPC_RMID, make_file, make_segment, place_of, unmap


def file_in_mounts_of_a_thread(builder: Builder) -> Made:
    """A file that nobody holds, in a mount namespace that only one thread is in."""
    driven = builder.target()
    where = builder.mix.directory / fresh("of a thread")
    tid = mount_in_a_thread(driven, where, "file")
    fd = driven.run("result = os.memlens_thread_values['fd']")
    driven.os("ftruncate", fd, 53 * PAGE)
    start = driven.mmap(53, flags=MAP_SHARED, fd=fd)
    builder.out(driven, start, 51)
    made = builder.add(driven, start, "in mounts of a thread", "tmpfs", out=51)
    driven.os("close", fd)
    driven.libc("munmap", start, 53 * PAGE)
    made.name, made.marks = str(where / "file"), {"no_holder", "other_mount_namespace"}
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/task/{tid}/root{made.name}")
    return made


def segment_of_a_thread(builder: Builder) -> Made:
    """A segment in an IPC namespace that only one thread is in; attached to all."""
    driven = builder.target()
    work = """
libc.shmat.restype = ctypes.c_void_p
start = libc.shmat(libc.shmget(0, size, 0o1600), None, 0)
"""
    start_thread(driven, CLONE_NEWIPC, work, size=39 * PAGE)
    start = driven.run("result = os.memlens_thread_values['start']")
    builder.out(driven, start, 37)
    made = builder.add(driven, start, "of a thread", "sysv", out=37)
    made.holders, made.marks = {driven.pid: (39, False)}, {"other_ipc_namespace"}
    return made


def _file_with_a_cover(builder: Builder, driven: Target, top: Path) -> Made:
    """Make a file of nobody below a directory that another tmpfs can be mounted over."""
    driven.os("mkdir", str(top / "below"))
    made = make_file(builder, driven, top / "below" / "covered here", 45, 43)
    unmap(driven, made, is_elsewhere=True)
    return made


def below_a_mount_of_ours(builder: Builder) -> Made:
    """A file below another mount in our namespace, while another namespace shows it."""
    driven = builder.target()
    top = builder.tmpfs()
    made = _file_with_a_cover(builder, driven, top)
    driven.isolate_mounts()
    mount_tmpfs(builder.stack, top / "below")
    return made


def below_a_mount_but_bound_elsewhere(builder: Builder) -> Made:
    """A file below another mount, of a tmpfs that is mounted at a second place as well."""
    driven = builder.target()
    driven.isolate_mounts()
    top, second = (builder.mix.directory / fresh(name) for name in ("top", "second"))
    second.mkdir()
    driven.mount("tmpfs", top)
    made = _file_with_a_cover(builder, driven, top)
    driven.libc("mount", bytes(top) + b"\0", bytes(second) + b"\0", None, MS_BIND, None)
    driven.mount("tmpfs", top / "below")
    made.name = str(second / "below" / "covered here")
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/root{made.name}")
    return made


def deleted_but_mounted(builder: Builder) -> Made:
    """A file that has no name but that of the file it is mounted over."""
    driven = builder.target()
    driven.isolate_mounts()
    whole = builder.mix.directory / fresh("whole")
    point = builder.mix.directory / fresh("point")
    point.write_bytes(b"")
    driven.mount("tmpfs", whole)
    made = make_file(builder, driven, whole / "deleted", 15, 13)
    ends = bytes(whole / "deleted") + b"\0", bytes(point) + b"\0"
    driven.libc("mount", *ends, None, MS_BIND, None)
    unmap(driven, made, is_elsewhere=True)
    driven.os("unlink", str(whole / "deleted"))
    made.name = str(point)
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/root{point}")
    return made


def below_a_detached_root(builder: Builder) -> Made:
    """A file on a tmpfs that is mounted nowhere any more, and is the root of a process."""
    driven = builder.target()
    driven.isolate_mounts()
    other = driven.fork()
    where = builder.mix.directory / fresh("detached root")
    driven.mount("tmpfs", where)
    made = make_file(builder, driven, where / "file", 49, 47)
    unmap(driven, made, is_elsewhere=True)
    driven.os("chroot", str(where))
    driven.os("chdir", "/")
    other.libc("umount2", bytes(where) + b"\0", MNT_DETACH)
    made.name = "/file"
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/root{made.name}")
    return made


def at_a_long_path(builder: Builder) -> Made:
    """A file of nobody whose path is longer than one call takes."""
    driven = builder.target()
    top = builder.tmpfs()
    driven.os("chdir", str(top))
    for _ in range(30):
        driven.os("mkdir", "d" * 200)
        driven.os("chdir", "d" * 200)
    fd = driven.os("open", "file", os.O_RDWR | os.O_CREAT, 0o600)
    driven.os("ftruncate", fd, 55 * PAGE)
    start = driven.mmap(55, flags=MAP_SHARED, fd=fd)
    builder.out(driven, start, 54)
    made = builder.add(driven, start, "at a long path", "tmpfs", out=54)
    driven.os("close", fd)
    driven.libc("munmap", start, 55 * PAGE)
    made.name = "/".join([str(top), *["d" * 200] * 30, "file"])
    made.marks = {"no_holder"}
    made.count_out = lambda: count_evicted(f"/proc/{driven.pid}/cwd/file")
    return made


def removed_and_cut(builder: Builder) -> Made:
    """A removed segment whose one attachment counts three times, cut by mprotect."""
    driven = builder.target()
    shmid, start, made = make_segment(builder, driven, 57, 52)
    driven.libc("shmctl", shmid, IPC_RMID, None)
    driven.libc("mprotect", start + 20 * PAGE, PAGE, PROT_READ)
    made.marks = {"deleted"}
    return made


def segment_without_its_namespace(builder: Builder) -> Made:
    """A segment of an IPC namespace that is no more: it goes with the process that has it."""
    driven = builder.target()
    driven.libc("unshare", CLONE_NEWIPC)
    _, _, made = make_segment(builder, driven, 63, 61)
    first, length = place_of(driven.pid, made)
    path = f"/proc/{driven.pid}/map_files/{first:x}-{first + length:x}"
    made.count_out = lambda: count_evicted(path)
    made.marks = {"deleted"}
    driven.libc("unshare", CLONE_NEWIPC)
    return made


ELSEWHERE = (
    *(file_in_mounts_of_a_thread, segment_of_a_thread, below_a_mount_of_ours),
    *(below_a_mount_but_bound_elsewhere, deleted_but_mounted, below_a_detached_root),
    *(at_a_long_path, removed_and_cut, segment_without_its_namespace),
)
