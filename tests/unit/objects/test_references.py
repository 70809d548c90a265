"""Descriptors on their way through a socket, as its fdinfo counts them."""

import os
import socket

import pytest

from memlens.objects.references import (
    has_message_counts,
    is_socket_link,
    read_message_descriptors,
)


def count(fd: int) -> int | None:
    return read_message_descriptors(f"/proc/self/fdinfo/{fd}")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_what_was_sent_counts_until_it_is_received(kind: int) -> None:
    if not has_message_counts():
        pytest.skip("this kernel does not tell")
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        socket.send_fds(one, [b"x"], [0, 1])
        socket.send_fds(one, [b"x"], [2])
        assert (count(one.fileno()), count(other.fileno())) == (0, 3)
        for fd in socket.recv_fds(other, 1, 3)[1]:
            os.close(fd)
        assert count(other.fileno()) == 1


def test_others_have_no_messages() -> None:
    with socket.socket(socket.AF_INET) as other:
        assert count(other.fileno()) is None
    with open(os.devnull) as file:
        assert count(file.fileno()) is None


def test_what_is_closed_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        count(1 << 20)


def test_links_of_sockets() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert is_socket_link(os.readlink(f"/proc/self/fd/{one.fileno()}"))
    assert not is_socket_link("/socket:[7]")
