"""Files on disk, on overlayfs and on ramfs, and block devices."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Cgroup
from tests.kernel.support.driver import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    MADV_DONTNEED,
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_WILLNEED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    Target,
    pages_where,
)
from tests.kernel.support.machine import Missing, wait_until
from tests.kernel.workloads.base import (
    BOTH,
    PRIME,
    Expected,
    P,
    PageClass,
    Tools,
    Workload,
    entries,
    page_out,
    pattern,
)
from tests.kernel.workloads.shmem import memfd, push_out

ENTRIES, workload = entries()

STATES = {
    "mapped": P.PRESENT,
    "mapped, written": P.PRESENT,
    "cached": P.CACHED,
    "dirty": P.CACHED,
    "on disk": P.ON_DISK,
    "reclaimed": P.ON_DISK,
    "hole": P.NONE,
    "punched": P.NONE,
    "unwritten": P.NONE,
    "hole, read": P.CACHED,
    "hole, mapped": P.PRESENT,
}
ON_DISK = (
    *("mapped", "cached", "on disk", "hole", "reclaimed", "mapped, written", "dirty"),
    *("unwritten", "hole, mapped", "reclaimed", "on disk", "hole, read", "punched"),
)
FADV_RANDOM, FADV_DONTNEED = 1, 4


def drop(driven: Target, fd: int, pages: Sequence[int], cgroup: Cgroup | None = None) -> None:
    """Drop pages of a file from the page cache, by reclaim if there is a cgroup."""

    def is_resident(page: int) -> bool:
        # Not cachestat: on overlayfs it answers for another inode.
        return bool(oracle.read_mincore(descriptor, page * PAGE, 1)[0])

    def is_dropped() -> bool:
        if cgroup:
            cgroup.reclaim()
        else:
            for page in pages:
                driven.os("posix_fadvise", fd, page * PAGE, PAGE, FADV_DONTNEED)
        return not any(is_resident(page) for page in pages)

    descriptor = os.open(f"/proc/{driven.pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        wait_until(is_dropped, "pages dropped from the page cache")
    finally:
        os.close(descriptor)


def _make(
    tools: Tools,
    driven: Target,
    fd: int,
    start: int,
    states: Sequence[str],
    offset_pages: int = 0,
) -> list[PageClass]:
    """Bring each page of a shared mapping of a file that is all hole into its state."""

    def where(*wanted: str) -> list[int]:
        return pages_where(states, *wanted)

    def in_file(*wanted: str) -> list[int]:
        return [page + offset_pages for page in where(*wanted)]

    driven.os("posix_fadvise", fd, 0, 0, FADV_RANDOM)  # no readahead
    if where("reclaimed"):
        with tools.squeeze.cgroup() as cgroup:
            with cgroup.charging(driven.pid):
                driven.pwrite(fd, in_file("reclaimed"))
            driven.os("fsync", fd)
            drop(driven, fd, in_file("reclaimed"), cgroup)
    written = ("mapped", "mapped, written", "cached", "on disk", "punched")
    driven.pwrite(fd, in_file(*written))
    driven.os("fsync", fd)
    drop(driven, fd, in_file("on disk"))
    holes = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    if where("punched"):
        driven.fallocate(fd, in_file("punched"), holes)
    if where("unwritten"):
        driven.fallocate(fd, in_file("unwritten"))
    driven.pwrite(fd, in_file("dirty"))
    for page in in_file("hole, read"):
        driven.os("pread", fd, 1, page * PAGE)
    driven.madvise(start, range(len(states)), MADV_RANDOM)  # no readahead by faults
    driven.poke(start, where("mapped, written"))
    driven.peek(start, where("mapped", "hole, mapped"))
    driven.madvise(start, range(len(states)), MADV_NORMAL)
    # A read fault maps its neighbours too (fault-around): unmap what must not be mapped.
    unmapped = [page for page, state in enumerate(states) if STATES[state] is not P.PRESENT]
    driven.madvise(start, unmapped, MADV_DONTNEED)
    return [STATES[state] for state in states]


def _file(driven: Target, path: Path, pages: int, cut_bytes: int = 0) -> int:
    """Make a file that is all hole, open in the target."""
    fd: int = driven.os("open", str(path), os.O_RDWR | os.O_CREAT, 0o644)
    driven.os("ftruncate", fd, pages * PAGE - cut_bytes)
    return fd


def require_disk(directory: Path) -> None:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind not in ("ext2/ext3", "xfs", "btrfs"):
        raise Missing(f"{directory} is on {kind}, not on a disk filesystem")


def _mapped(
    tools: Tools,
    driven: Target,
    path: Path,
    states: Sequence[str],
    *,
    proof: str = "disk",
    offset_pages: int = 0,
    beyond: int = 0,
    cut_bytes: int = 0,
) -> Expected:
    pages = len(states)
    fd = _file(driven, path, offset_pages + pages, cut_bytes)
    start = driven.mmap(pages + beyond, flags=MAP_SHARED, fd=fd, offset_pages=offset_pages)
    classes = _make(tools, driven, fd, start, states, offset_pages)
    classes += [P.BEYOND_END] * beyond
    names = [*states, *["beyond"] * beyond]
    return Expected(driven.pid, start, classes, proof, offset_pages * PAGE, names)


@workload("none", *BOTH)
def disk_file(tools: Tools) -> Workload:
    """A file on disk: an evicted page is on disk, and never on swap."""
    require_disk(tools.directory)
    driven = tools.target()
    states = pattern(ON_DISK, 61)
    stretches = pattern(ON_DISK, 97, 5)
    return Workload(
        driven,
        [
            _mapped(tools, driven, tools.directory / "plain", states),
            _mapped(tools, driven, tools.directory / "offset", stretches, offset_pages=7),
            _mapped(
                *(tools, driven, tools.directory / "name with space\n(deleted)", states),
                beyond=5,
                cut_bytes=1000,
            ),
        ],
    )


@workload()
def disk_file_deleted_and_cut(tools: Tools) -> Workload:
    """A deleted file, and one cut short under its mapping."""
    require_disk(tools.directory)
    driven = tools.target()
    states = pattern(ON_DISK, 47)
    deleted = _mapped(tools, driven, tools.directory / "deleted", states)
    (tools.directory / "deleted").unlink()
    cut = _mapped(tools, driven, tools.directory / "cut", states)
    os.truncate(tools.directory / "cut", 29 * PAGE)
    cut.classes = [
        P.BEYOND_END if page >= 29 else kind for page, kind in enumerate(cut.classes)
    ]
    return Workload(driven, [deleted, cut])


@workload()
def odd_names(tools: Tools) -> Workload:
    """Names that maps prints as it prints others, of files that are not open any more."""
    require_disk(tools.directory)
    driven = tools.target()
    states = pattern(("mapped", "cached", "on disk", "hole"), PRIME)
    mappings = []
    for name in ("there (deleted)", "a\\012b", "c\nd", "c\\012d\n (deleted)"):
        fd = _file(driven, tools.directory / name, PRIME)
        start = driven.mmap(PRIME, flags=MAP_SHARED, fd=fd)
        classes = _make(tools, driven, fd, start, states)
        driven.os("close", fd)
        mappings.append(Expected(driven.pid, start, classes, "disk", 0, states))
    return Workload(driven, mappings)


PRIVATE = {
    "copied": P.PRESENT,
    "copied, swapped": P.SWAPPED,
    "copied, given back": P.CACHED,
    "copied over hole": P.PRESENT,
    "mapped": P.PRESENT,
    "cached": P.CACHED,
    "hole": P.NONE,
}


def _make_private(driven: Target, start: int, states: Sequence[str]) -> None:
    """Copy pages of a private mapping of a cached file, and swap out some copies."""
    copied = [page for page, state in enumerate(states) if state.startswith("copied")]
    driven.madvise(start, range(len(states)), MADV_RANDOM)
    driven.poke(start, copied)
    page_out(driven, start, pages_where(states, "copied, swapped"))
    driven.madvise(start, pages_where(states, "copied, given back"), MADV_DONTNEED)
    driven.peek(start, pages_where(states, "mapped"))


@workload("none", *BOTH)
def private_of_disk_file(tools: Tools) -> Workload:
    """Private copies of a file's pages are the process's own, and go to swap."""
    require_disk(tools.directory)
    driven = tools.target()
    names = [state for state in PRIVATE if tools.swap != "none" or "swapped" not in state]
    states = pattern(names, 41)
    mappings = []
    for number, is_cached in enumerate((True, False)):
        fd = _file(driven, tools.directory / f"file{number}", len(states))
        driven.os("posix_fadvise", fd, 0, 0, FADV_RANDOM)
        data = [page for page, state in enumerate(states) if "hole" not in state]
        driven.pwrite(fd, data)
        driven.os("fsync", fd)
        start = driven.mmap(len(states), flags=MAP_PRIVATE, fd=fd)
        _make_private(driven, start, states)
        unmapped = pages_where(states, "cached", "hole", "copied, given back")
        driven.madvise(start, unmapped, MADV_DONTNEED)
        classes = [PRIVATE[state] for state in states]
        if not is_cached:
            drop(driven, fd, [p for p, kind in enumerate(classes) if kind is P.CACHED])
            classes = [P.ON_DISK if kind is P.CACHED else kind for kind in classes]
        mappings.append(Expected(driven.pid, start, classes, "disk", 0, states))
    return Workload(driven, mappings)


@workload(*BOTH)
def private_of_memfd(tools: Tools) -> Workload:
    """Private copies over a memfd, each state of the copy over each of the memfd."""
    driven = tools.target()
    under = ("cached", "swapped", "swap cached", "hole", "fallocated")
    over = ("bare", "copied", "copied, swapped", "copied, given back")
    states = [f"{name} over {below}" for name in over for below in under] * 3
    fd = memfd(driven, len(states))
    start = driven.mmap(len(states), flags=MAP_PRIVATE, fd=fd)

    def where(text: str) -> list[int]:
        return [page for page, state in enumerate(states) if text in state]

    out = where("over swap")
    with tools.squeeze.cgroup() as cgroup:
        with cgroup.charging(driven.pid):
            driven.pwrite(fd, out)
        driven.pwrite(fd, where("over cached"))
        driven.fallocate(fd, where("over fallocated"))
        driven.poke(start, where("copied"))
        page_out(driven, start, where("copied, swapped"))
        driven.madvise(start, where("given back") + where("bare"), MADV_DONTNEED)
        push_out(cgroup, driven, fd, out)
    driven.madvise(start, where("over swap cached"), MADV_WILLNEED)
    classes = [_class_of_pair(*state.split(" over ")) for state in states]
    return Workload(driven, [Expected(driven.pid, start, classes, "shmem", 0, states)])


def _class_of_pair(over: str, under: str) -> PageClass:
    if over in ("copied", "copied, swapped"):
        return P.PRESENT if over == "copied" else P.SWAPPED
    known = {"cached": P.CACHED, "swapped": P.SWAPPED, "swap cached": P.SWAP_CACHED}
    if over == "copied, given back":
        # To copy a page that has no contents, the kernel first makes one of zeros.
        return known.get(under, P.CACHED)
    return known.get(under, P.PREALLOCATED if under == "fallocated" else P.NONE)


@workload("none", *BOTH)
def ramfs(tools: Tools) -> Workload:
    """ramfs calls every page data and has no swap."""
    driven = tools.target()
    driven.isolate_mounts()
    driven.mount("ramfs", tools.directory / "ramfs")
    states = pattern(("mapped, written", "cached", "hole", "dirty"), PRIME)
    path = tools.directory / "ramfs" / "file"
    return Workload(driven, [_mapped(tools, driven, path, states, proof="ramfs", beyond=2)])


def _loop_device(tools: Tools, image: Path) -> str:
    """Attach an image to a loop device, detached again at the end."""
    device = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if device.returncode:
        raise Missing(f"losetup: {device.stderr}")
    name = device.stdout.strip()

    def detach() -> None:
        subprocess.run(["losetup", "--detach", name], check=True)
        backing = Path("/sys/block") / Path(name).name / "loop" / "backing_file"
        wait_until(lambda: not backing.exists(), f"{name} detached")

    tools.stack.callback(detach)
    return name


@workload()
def small_blocks(tools: Tools) -> Workload:
    """A file with blocks of 1 KiB: pages of which only a part is cached, or data."""
    image = tools.directory / "blocks"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    made = subprocess.run(
        ["mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal", str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Missing(f"mkfs.ext4: {made.stderr}")
    name = _loop_device(tools, image)
    driven = tools.target()  # ends before the device is detached
    driven.isolate_mounts()
    driven.mount("ext4", tools.directory / "small", device=name)
    fd = _file(driven, tools.directory / "small/file", PRIME, cut_bytes=PAGE - 500)
    driven.os("posix_fadvise", fd, 0, 0, FADV_RANDOM)
    states = [*pattern(("part on disk", "part cached", "hole"), PRIME - 1), "part cached"]

    def write(*wanted: str) -> None:
        for page in pages_where(states, *wanted):
            inside = 0 if page == PRIME - 1 else page % 4 * 1024
            driven.os("pwrite", fd, b"part", page * PAGE + inside)

    write("part on disk")
    driven.os("fsync", fd)
    drop(driven, fd, pages_where(states, "part on disk"))
    start = driven.mmap(PRIME + 2, flags=MAP_SHARED, fd=fd)
    write("part cached")
    kinds = {"part on disk": P.ON_DISK, "part cached": P.CACHED, "hole": P.NONE}
    classes = [*(kinds[state] for state in states), P.BEYOND_END, P.BEYOND_END]
    names = [*states, "beyond", "beyond"]
    return Workload(driven, [Expected(driven.pid, start, classes, "parts", 0, names)])


@workload()
def block_device(tools: Tools) -> Workload:
    """A block device, which knows no SEEK_DATA and whose stat says size 0."""
    image = tools.directory / "image"
    with image.open("wb") as file:
        file.truncate(PRIME * PAGE)
    name = _loop_device(tools, image)
    driven = tools.target()  # ends before the device is detached
    fd = driven.os("open", name, os.O_RDWR)
    states = pattern(("mapped", "on disk", "cached", "dirty", "mapped, written"), PRIME)
    start = driven.mmap(PRIME + 3, flags=MAP_SHARED, fd=fd)
    classes = _make(tools, driven, fd, start, states) + [P.BEYOND_END] * 3
    names = [*states, *["beyond"] * 3]
    return Workload(driven, [Expected(driven.pid, start, classes, "block", 0, names)])
