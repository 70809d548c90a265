"""Who maps a file, and whose children processes are, from text."""

from pathlib import Path

from memlens.kernel.processes import FileMappers, FileMapping, add_descendants, parse_parent
from memlens.kernel.procfs import Host


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
    mappers = FileMappers(Host(str(tmp_path)))
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
