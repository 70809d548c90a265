"""Leases, as /proc/locks lists them: a real one, and those of another /proc."""

import fcntl
import os
from pathlib import Path

import pytest

from memlens.kernel.procfs import Host
from memlens.objects.filewalk import FileWalk
from memlens.objects.leases import LEASED, Leases, parse_leases


def test_a_lease_is_seen_also_when_another_proc_is_read(tmp_path: Path) -> None:
    # A /proc of another PID namespace does not list the leases of ours.
    (tmp_path / "locks").write_text("1: LEASE  ACTIVE    WRITE 77 fe:00:131 0 EOF\n")
    path = tmp_path / "file"
    with path.open("w+b") as file:
        leases = Leases(Host(str(tmp_path)))
        assert not leases.has(os.fstat(file.fileno()))
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"{tmp_path} takes no leases: {error}")
        held = Leases(Host(str(tmp_path)))
        assert held.has(os.fstat(file.fileno()))
        assert held.has_inode(os.makedev(0xFE, 0), 131)
        inode = path.stat().st_ino
        (tmp_path / "link").symlink_to(path)
        assert held.has_named(str(path), None, inode)
        assert held.has_named(str(tmp_path / "link"), None, inode)
        walk = FileWalk(Host(str(tmp_path)))
        found = {row.path: row.reason for row in walk.iter_files([str(tmp_path)])}
        assert found == {str(path): LEASED, str(tmp_path / "locks"): ""}
        assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_WRLCK


def test_a_file_of_the_same_number_on_another_device_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    inode = path.stat().st_ino
    (tmp_path / "locks").write_text(f"1: LEASE  ACTIVE    WRITE 77 ff:ff:{inode} 0 EOF\n")
    leases = Leases(Host(str(tmp_path)))
    assert leases.has_inode(os.makedev(0xFF, 0xFF), inode)
    assert not leases.has_named(str(path), None, inode)


def test_read_leases_do_not_hinder_a_reader() -> None:
    for line in (b"LEASE  ACTIVE    READ  77 fe:00:131", b"POSIX  ADVISORY  WRITE 7 fe:00:5"):
        assert parse_leases(b"1: " + line + b" 0 EOF\n") == frozenset()
    breaking = b"1: LEASE  BREAKING  UNLCK 77 00:2a:9 0 EOF\n"
    assert parse_leases(breaking) == {(os.makedev(0, 0x2A), 9)}
