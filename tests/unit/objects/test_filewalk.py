"""Which mounts a walk does not enter, from text."""

import pytest

from memlens.objects.filewalk import parse_mount_reasons


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
