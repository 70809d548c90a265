"""Copy-ups on overlays, by what mountinfo and the upper directory say."""

import os
from pathlib import Path

import pytest

from memlens.kernel.maps import parse_maps
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Host
from memlens.objects.overlay import is_maybe_copied_up, parse_overlays

STAT = "7 (a) R 1 1 1 0 -1 64 " + "0 " * 10 + "1 0 99 0"
LINE = b"00400000-00401000 r--p 00000000 00:2a 131 /m/file\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory of a process whose root is the same as ours."""
    place = tmp_path / "7"
    place.mkdir()
    (place / "stat").write_text(STAT)
    (place / "maps").write_bytes(LINE)
    (place / "root").symlink_to("/")
    return place


def is_copied(place: Path, upper: object, options: str = "", line: bytes = LINE) -> bool:
    mount = f"9 1 0:42 / /m rw - overlay o rw,lowerdir=/l,upperdir={upper},workdir=/w{options}"
    (place / "mountinfo").write_text(mount)
    with ProcessDir(7, Host(str(place.parent))) as process:
        return is_maybe_copied_up(process, parse_maps(line)[0])


def test_what_the_upper_directory_does_not_have_was_not_copied(
    place: Path, tmp_path: Path
) -> None:
    assert not is_copied(place, tmp_path)


def test_a_layer_that_is_not_there_or_named_relatively_is_open(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "upper").mkdir()
    assert is_copied(place, tmp_path / "gone")
    assert is_copied(place, "upper")


def test_one_name_of_two_directories_is_open(place: Path, tmp_path: Path) -> None:
    (place / "root").unlink()
    (tmp_path / "upper").mkdir()
    assert not is_copied(place, tmp_path / "upper")
    os.makedirs(f"{place}/root{tmp_path}/upper")
    assert is_copied(place, tmp_path / "upper")


@pytest.mark.parametrize("origin", ["user.overlay.origin", "user.other"])
def test_the_mark_of_a_copy_that_any_user_may_set(
    place: Path, tmp_path: Path, origin: str
) -> None:
    path = tmp_path / "file"
    path.touch()
    is_marked = origin == "user.overlay.origin"
    try:
        os.setxattr(path, origin, b"")
    except OSError:
        is_marked = True  # this file system has no such attributes: nothing is known
    assert is_copied(place, tmp_path, ",userxattr") is is_marked


def test_escapes_in_the_names_of_layers() -> None:
    line = rb"9 1 0:42 / /m\040x rw - overlay o rw,lowerdir=/a\072b:/c\054d,upperdir=/u\134"
    (found,) = parse_overlays(line).values()
    assert (found.mount_point, found.upper, found.lower) == ("/m x", "/u\\", ("/a:b", "/c,d"))


@pytest.mark.parametrize("name", ["a\nb", "a\\012b", "a\n\\012b", "\n" * 9])
def test_a_copy_by_any_name_that_maps_prints_so(place: Path, tmp_path: Path, name: str) -> None:
    """A newline reads as a backslash and its number do, which a name may have too."""
    line = LINE.replace(b"/m/file", b"/m/" + name.encode().replace(b"\n", rb"\012"))
    (tmp_path / name).touch()
    try:
        os.setxattr(tmp_path / name, "user.overlay.origin", b"")
    except OSError:
        pass  # what cannot be known counts as a copy
    assert is_copied(place, tmp_path, ",userxattr", line)
