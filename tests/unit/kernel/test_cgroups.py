"""Where the memory controller is mounted, as mountinfo tells it; memory.stat."""

import inspect
import sys
from pathlib import Path

import pytest

from memlens.kernel.cgroups import (
    MemoryHierarchy,
    parse_hierarchy,
    parse_memory_stat,
    walk_cgroups,
)

V1 = b"33 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1_OTHER = b"32 25 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
V2 = b"40 25 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
BOUND = b"41 25 0:37 /pod/web /sys/fs/my\\040cgroup ro shared:9 - cgroup2 cgroup2 rw\n"


COVER = b"63 40 0:37 /pod /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (V2 + V1_OTHER + V1, MemoryHierarchy("/sys/fs/cgroup/memory", 1)),
        (V1_OTHER + V2, MemoryHierarchy("/sys/fs/cgroup/unified", 2)),
        (BOUND, MemoryHierarchy("/sys/fs/my cgroup", 2, "/pod/web")),
        (V2 + COVER, MemoryHierarchy("/sys/fs/cgroup/unified", 2, "/pod")),
        (V1_OTHER, MemoryHierarchy("", 2)),
        (b"", MemoryHierarchy("", 2)),
    ],
    ids=["v1", "v2", "of a container", "covered", "no memory", "no mounts"],
)
def test_where_it_is_mounted(raw: bytes, found: MemoryHierarchy) -> None:
    assert parse_hierarchy(raw) == found


@pytest.mark.parametrize("raw", [V1, V2, BOUND], ids=["v1", "v2", "of a container"])
@pytest.mark.parametrize("below", ["", "/a", "/a/b c"])
def test_a_path_leads_back_to_its_directory(raw: bytes, below: str) -> None:
    found = parse_hierarchy(raw)
    directory = found.root + below
    path = found.path_of(directory)
    assert path == (f"{found.top}{below}" or "/")
    assert found.directory_of(path).rstrip("/") == directory
    # Named from the mount, as somebody inside a container would.
    assert found.directory_of(below or "/").rstrip("/") == directory


def test_a_cgroup_with_a_name_alike_is_not_below() -> None:
    found = parse_hierarchy(BOUND)
    assert found.directory_of("/pod/website") == "/sys/fs/my cgroup/pod/website"


def test_memory_stat_of_both_versions() -> None:
    assert parse_memory_stat(b"total_rss 8192\nhierarchical x\n\nshmem 0\n") == {
        "total_rss": 8192,
        "shmem": 0,
    }


def test_cgroups_are_walked_however_deep(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    deepest = tmp_path.joinpath(*["c"] * 100)
    deepest.mkdir(parents=True)
    (tmp_path / "cgroup.procs").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 50)
    try:
        found = list(walk_cgroups(str(tmp_path)))
    finally:
        sys.setrecursionlimit(limit)
    assert (found[0][0], sorted(found[0][1])) == (str(tmp_path), ["a", "c"])
    assert dict(found)[str(deepest)] == []
    assert len(found) == 102
    assert not list(walk_cgroups(str(tmp_path / "none")))
