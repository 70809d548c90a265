"""Which mounts a walk does not enter, and who maps a file, from text."""

from pathlib import Path

import pytest

from memlens.kernel.averages import parse_config
from memlens.kernel.filemaps import FileMappers, FileMapping
from memlens.kernel.filewalk import parse_mount_reasons
from memlens.kernel.memorystat import parse_memory_stat
from memlens.kernel.processtree import add_descendants, parse_parent


def mount(point: str, kind: str) -> bytes:
    return f"24 1 0:21 / {point} rw,relatime shared:1 - {kind} source rw\n".encode()


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "fuse", "fuseblk", "fuse.sshfs", "autofs", "9p"]
)
def test_what_may_hang_is_closed(kind: str) -> None:
    assert parse_mount_reasons(mount("/a\\040b", kind)) == {
        "/a b": f"{kind} may not answer: not entered"
    }


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs", "overlay", "fusion"])
def test_others_are_open(kind: str) -> None:
    assert parse_mount_reasons(mount("/a", kind)) == {"/a": ""}


def test_the_last_mount_on_a_place_counts() -> None:
    assert parse_mount_reasons(mount("/a", "nfs") + mount("/a", "ext4")) == {"/a": ""}
    assert list(parse_mount_reasons(mount("/a", "ext4") + mount("/a", "proc"))) == ["/a"]


def test_mappers_by_file(tmp_path: Path) -> None:
    lines = {
        "7": b"1000-3000 rw-p 00002000 fe:01 131   /a b\n5000-6000 rw-p 00000000 00:00 0 \n",
        "9": b"a000-b000 r--s 00000000 fe:01 131   /a b (deleted)\n"
        b"c000-d000 r--s 00000000 fe:01 1310   /c\n",
    }
    for pid, text in lines.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "maps").write_bytes(text)
    (tmp_path / "self").mkdir()
    mappers = FileMappers(str(tmp_path))
    mappers.read()

    class Status:
        st_dev = 0xFE01
        st_ino = 131

    found = mappers.find(Status(), -1, "file")
    expected = [FileMapping(7, 0x1000, 0x3000, 0x2000), FileMapping(9, 0xA000, 0xB000, 0)]
    assert sorted(found) == expected
    assert mappers.pids == 2


def test_parents() -> None:
    assert parse_parent(b"7 (a) S 1 (b) R 12 7 7 0 -1") == 12
    assert add_descendants([7, 2], {2: 7, 3: 2, 7: 1, 4: 9}) == [7, 2, 3]


def test_configuration() -> None:
    assert parse_config("CONFIG_MMU=y\nCONFIG_NO_PAGE_MAPCOUNT=y\n") is True
    assert parse_config("# CONFIG_NO_PAGE_MAPCOUNT is not set\nCONFIG_MMU=y") is False
    assert parse_config("") is None


def test_memory_stat_of_both_versions() -> None:
    assert parse_memory_stat(b"total_rss 8192\nhierarchical x\n\nshmem 0\n") == {
        "total_rss": 8192,
        "shmem": 0,
    }
