"""Files on overlayfs, which answers some questions for another file than the mapped one."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.driver import (
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    Target,
    pages_where,
)
from tests.kernel.support.machine import StateMoved
from tests.kernel.workloads.base import (
    BOTH,
    PRIME,
    PROOFS,
    SHMEM_ANSWERS,
    Expected,
    P,
    PageClass,
    Tools,
    Workload,
    entries,
    object_proof,
    page_out,
    pattern,
)
from tests.kernel.workloads.files import FADV_RANDOM, STATES, drop, require_disk
from tests.kernel.workloads.shmem import make_shmem, mixed_states, push_out

ENTRIES, workload = entries()

OVERLAY = ("mapped", "cached", "on disk", "hole")


def _overlay(tools: Tools, driven: Target, lower: Path, upper: Path, options: str = "") -> Path:
    """Mount an overlay in the target alone and return where."""
    merged = tools.directory / "merged"
    work = upper.parent / "work"
    for path in (lower, upper, work):
        path.mkdir(exist_ok=True, parents=True)
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    driven.mount("overlay", merged, layers + options)
    return merged


def _overlay_mapping(driven: Target, path: Path, states: Sequence[str]) -> Expected:
    fd = driven.os("open", str(path), os.O_RDONLY)
    driven.os("posix_fadvise", fd, 0, 0, FADV_RANDOM)
    start = driven.mmap(len(states), protection=PROT_READ, flags=MAP_SHARED, fd=fd)
    drop(driven, fd, list(range(len(states))))
    for page in pages_where(states, "cached", "mapped"):
        driven.os("pread", fd, 1, page * PAGE)
    driven.peek(start, pages_where(states, "mapped"))
    unmapped = [page for page, state in enumerate(states) if state != "mapped"]
    driven.madvise(start, unmapped, MADV_DONTNEED)
    classes = [STATES[state] for state in states]
    return Expected(driven.pid, start, classes, "overlay", 0, states)


def _write_file(path: Path, states: Sequence[str]) -> None:
    with path.open("wb", buffering=0) as file:
        file.truncate(len(states) * PAGE)
        for page, state in enumerate(states):
            if state != "hole":
                os.pwrite(file.fileno(), b"memlens" * 100, page * PAGE)
        os.fsync(file.fileno())


@workload("none", *BOTH)
def overlay(tools: Tools) -> Workload:
    """Files of the lower and of the upper layer; cachestat is wrong here."""
    require_disk(tools.directory)
    driven = tools.target()
    driven.isolate_mounts()
    states = pattern(OVERLAY, PRIME)
    (tools.directory / "lower").mkdir()
    (tools.directory / "layer" / "upper").mkdir(parents=True)
    _write_file(tools.directory / "lower" / "below", states)
    _write_file(tools.directory / "layer" / "upper" / "above", states)
    merged = _overlay(
        tools, driven, tools.directory / "lower", tools.directory / "layer" / "upper"
    )
    below = _overlay_mapping(driven, merged / "below", states)
    above = _overlay_mapping(driven, merged / "above", states)
    return Workload(driven, [below, above])


@workload()
def overlay_copied_up(tools: Tools) -> Workload:
    """After a copy-up everything one can open answers for the copy, not for what is mapped."""
    return _copied_up(tools, "")


@workload()
def overlay_copied_up_by_user(tools: Tools) -> Workload:
    """As containers of ordinary users mount it: what marks the copy has another name."""
    return _copied_up(tools, ",userxattr")


def _copied_up(tools: Tools, options: str) -> Workload:
    """
    Map a file of the lower layer, then have it copied up.

    The process itself can ask mincore about its mapping; others have the walk, which tells
    what is in RAM, and cannot tell what is on disk.
    """
    require_disk(tools.directory)
    driven = tools.target()
    driven.isolate_mounts()
    states = pattern(OVERLAY, PRIME)
    (tools.directory / "lower").mkdir()
    _write_file(tools.directory / "lower" / "below", states)
    upper = tools.directory / "layer" / "upper"
    merged = _overlay(tools, driven, tools.directory / "lower", upper, options)
    below = _overlay_mapping(driven, merged / "below", states)
    writer = driven.os("open", str(merged / "below"), os.O_RDWR)
    driven.os("pwrite", writer, b"up", 0)
    # The copy was read through the page cache of the lower file.
    under = driven.os("open", str(tools.directory / "lower" / "below"), os.O_RDONLY)
    driven.os("posix_fadvise", under, 0, 0, FADV_RANDOM)
    drop(driven, under, pages_where(states, "on disk", "hole"))
    below.classes, below.proof = _by_own_mincore(driven, below), "copied up"

    def is_as_it_was() -> None:
        if _by_own_mincore(driven, below) != below.classes:
            raise StateMoved("the lower file's page cache")

    return Workload(driven, [below], checks=[is_as_it_was])


def _by_own_mincore(driven: Target, below: Expected) -> list[P]:
    pages = len(below.classes)
    asked = "mincore", below.start, pages * PAGE, bytes(pages)
    resident = driven.ask("libc", *asked)[1][0]
    return [
        kind if kind is P.PRESENT else P.CACHED if resident[page] & 1 else P.UNKNOWN
        for page, kind in enumerate(below.classes)
    ]


def prove_copied_up(expected: Expected) -> None:
    """The page table: what is mapped; the workload's check has the rest."""
    words = oracle.read_pagemap(expected.pid, expected.start, len(expected.classes)).tolist()
    for page, (word, kind) in enumerate(zip(words, expected.classes, strict=True)):
        if bool(word & oracle.PRESENT) != (kind is P.PRESENT):
            raise StateMoved(f"{expected.describe(page)}: word {word:#x}")


PROOFS["copied up"] = prove_copied_up


def _on_tmpfs(tools: Tools, *, is_lower_there: bool) -> Workload:
    driven = tools.target()
    driven.isolate_mounts()
    memory = Path(f"/dev/shm/memlens-test-{driven.pid}")
    tools.stack.callback(shutil.rmtree, memory)
    lower = memory / "lower" if is_lower_there else tools.directory / "lower"
    merged = _overlay(tools, driven, lower, memory / "upper")
    states = pattern(("swapped", "hole", "mapped"), PRIME)
    fd = driven.os("open", str(merged / "file"), os.O_RDWR | os.O_CREAT)
    driven.os("ftruncate", fd, PRIME * PAGE)
    start = driven.mmap(PRIME, flags=MAP_SHARED, fd=fd)
    swapped = pages_where(states, "swapped")
    with tools.squeeze.cgroup() as cgroup:
        with cgroup.charging(driven.pid):
            driven.poke(start, swapped)
        page_out(driven, start, swapped)
        drop(driven, fd, swapped, cgroup)
    driven.poke(start, pages_where(states, "mapped"))
    known = {"swapped": P.SWAPPED, "hole": P.NONE, "mapped": P.PRESENT}
    classes = [known[state] for state in states]
    return Workload(driven, [Expected(driven.pid, start, classes, "overlay", 0, states)])


@workload(*BOTH)
def overlay_on_tmpfs(tools: Tools) -> Workload:
    """All layers on a tmpfs: smaps Swap alone tells where the pages are."""
    return _on_tmpfs(tools, is_lower_there=True)


@workload(*BOTH)
def overlay_of_two_filesystems(tools: Tools) -> Workload:
    """Upper on tmpfs, lower on disk: stat answers with the device of a layer."""
    return _on_tmpfs(tools, is_lower_there=False)


@dataclass
class Layered(Expected):
    """
    A mapping of an overlay whose pages are those of a file on tmpfs.

    :param layer: that file, which answers every question as shared memory does.
    """

    layer: Path = Path()


def _open_layer(expected: Expected) -> int:
    assert isinstance(expected, Layered)
    return os.open(expected.layer, os.O_RDONLY | os.O_CLOEXEC)


PROOFS["layer on tmpfs"] = object_proof(SHMEM_ANSWERS, _open_layer)


def _layered(tools: Tools, mount: Callable[[Target, Path], Path]) -> Workload:
    """
    Make every state of shared memory in a file on tmpfs, and map it through an overlay too.

    :param mount: mounts the overlay, given the directory of the file; returns where.
    """
    driven = tools.target()
    driven.isolate_mounts()
    memory = Path(f"/dev/shm/memlens-test-{driven.pid}")
    tools.stack.callback(shutil.rmtree, memory)
    layer = memory / "layer" / "file"
    layer.parent.mkdir(parents=True)
    states = mixed_states(tools, 61)
    fd = driven.os("open", str(layer), os.O_RDWR | os.O_CREAT)
    driven.os("ftruncate", fd, len(states) * PAGE)
    home = driven.mmap(len(states), flags=MAP_SHARED, fd=fd)
    classes = make_shmem(tools, driven, home, fd, states)
    merged = mount(driven, memory)
    through = driven.os("open", str(merged / "file"), os.O_RDONLY)
    start = driven.mmap(len(states), protection=PROT_READ, flags=MAP_SHARED, fd=through)
    mapped = [page for page, kind in enumerate(classes) if kind is P.PRESENT][::2]
    driven.peek(start, mapped)
    # A read fault maps its neighbours too (fault-around).
    others = [page for page in range(len(states)) if page not in mapped]
    driven.madvise(start, others, MADV_DONTNEED)
    seen = [P.CACHED if kind is P.PRESENT else kind for kind in classes]
    for page in mapped:
        seen[page] = P.PRESENT
    place = driven.pid, start, seen, "layer on tmpfs", 0, states
    return Workload(driven, [Layered(*place, layer=layer)])


@workload("none", *BOTH)
def overlay_with_upper_on_tmpfs(tools: Tools) -> Workload:
    """As a container whose changes are kept in memory."""

    def mount(driven: Target, memory: Path) -> Path:
        return _overlay(tools, driven, memory / "lower", memory / "layer")

    return _layered(tools, mount)


@workload("none", *BOTH)
def overlay_with_lower_on_tmpfs(tools: Tools) -> Workload:
    """A file of a tmpfs that was not copied up to the disk."""
    require_disk(tools.directory)

    def mount(driven: Target, memory: Path) -> Path:
        return _overlay(tools, driven, memory / "layer", tools.directory / "disk" / "upper")

    return _layered(tools, mount)


@workload("none", *BOTH)
def overlay_on_overlay_on_tmpfs(tools: Tools) -> Workload:
    """The tmpfs is a layer of a layer."""
    require_disk(tools.directory)

    def mount(driven: Target, memory: Path) -> Path:
        below, above = tools.directory / "below", tools.directory / "above"
        # With layers on several file systems the lower overlay would go by another device.
        empty = memory / "empty"
        empty.mkdir()
        driven.mount("overlay", below, f"lowerdir={memory / 'layer'}:{empty}")
        driven.mount("overlay", above, f"lowerdir={below}:{empty}")
        return above

    return _layered(tools, mount)


# As many pages of the file are on swap behind what hides them here as are cached: smaps Swap
# counts the former, and is the number of all that is not hidden.
HIDING = ("hidden", "cached", "swapped", "hole") * 7
BEHIND = {"cached": P.CACHED, "swapped": P.SWAPPED, "hole": P.NONE}


def _hiding(tools: Tools, flags: int, hide: Callable[[Target, int], PageClass]) -> Workload:
    """
    Hide pages of a file on tmpfs, mapped through an overlay, and have them swapped out.

    :param hide: hides them in the mapping at an address; returns what they are there.
    """
    driven = tools.target()
    driven.isolate_mounts()
    memory = Path(f"/dev/shm/memlens-test-{driven.pid}")
    tools.stack.callback(shutil.rmtree, memory)
    merged = _overlay(tools, driven, memory / "lower", memory / "upper")
    through = driven.os("open", str(merged / "file"), os.O_RDWR | os.O_CREAT)
    driven.os("ftruncate", through, len(HIDING) * PAGE)
    layer = memory / "upper" / "file"
    fd = driven.os("open", str(layer), os.O_RDWR)
    start = driven.mmap(len(HIDING), flags=flags, fd=through)
    out = pages_where(HIDING, "hidden", "swapped")
    with tools.squeeze.cgroup() as cgroup:
        with cgroup.charging(driven.pid):
            driven.pwrite(fd, out)
        driven.pwrite(fd, pages_where(HIDING, "cached"))
        known = BEHIND | {"hidden": hide(driven, start)}
        push_out(cgroup, driven, fd, out)
    driven.libc("mprotect", start, len(HIDING) * PAGE, PROT_READ)
    place = driven.pid, start, [known[state] for state in HIDING]
    # Here, as for all that hides pages of an object, Swap is not the sum of the classes.
    layered = Layered(*place, "layer on tmpfs", 0, HIDING, ("Rss",), layer=layer)
    return Workload(driven, [layered])


@workload(*BOTH)
def overlay_on_tmpfs_behind_copies(tools: Tools) -> Workload:
    """Private copies, in a mapping that may no longer be written."""

    def copy(driven: Target, start: int) -> PageClass:
        driven.poke(start, pages_where(HIDING, "hidden"))
        return P.PRESENT

    return _hiding(tools, MAP_PRIVATE, copy)


@workload(*BOTH)
def overlay_on_tmpfs_behind_guards(tools: Tools) -> Workload:
    """Guard regions in a shared mapping."""

    def guard(driven: Target, start: int) -> PageClass:
        driven.madvise(start, pages_where(HIDING, "hidden"), MADV_GUARD_INSTALL)
        return P.GUARD

    return _hiding(tools, MAP_SHARED, guard)
