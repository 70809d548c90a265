"""
A process that does what it is told, and nothing else: the one that is looked at.

Run as a script (``python target.py FD``), it takes requests from a socket: system
calls, pokes and peeks.  Between requests it sleeps in ``recv``, so its memory stays
as it is.  It uses nothing but the standard library, so it starts in milliseconds,
and it dies with whoever started it.
"""

import ctypes
import os
import pickle
import signal
import socket
import struct
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
HEADER = struct.Struct("<Q")

libc = ctypes.CDLL(None, use_errno=True)


def send(channel: socket.socket, message: object) -> None:
    """Send one pickled message."""
    data = pickle.dumps(message)
    channel.sendall(HEADER.pack(len(data)) + data)


def receive(channel: socket.socket) -> Any:
    """Return one pickled message; EOFError when the other side has gone."""
    (length,) = HEADER.unpack(_receive_exactly(channel, HEADER.size))
    return pickle.loads(_receive_exactly(channel, length))


def _receive_exactly(channel: socket.socket, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        part = channel.recv(length - len(parts))
        if not part:
            raise EOFError
        parts += part
    return parts


def call_libc(name: str, *arguments: int | bytes | None) -> tuple[int, list[bytes]]:
    """Call a C function; ``bytes`` are passed in buffers, whose new contents come back."""
    buffers: list[Any] = []
    converted: list[Any] = []
    for argument in arguments:
        if isinstance(argument, bytes):
            buffers.append(ctypes.create_string_buffer(argument, len(argument)))
            converted.append(buffers[-1])
        elif argument is None:
            converted.append(None)
        else:
            converted.append(ctypes.c_ulong(argument & (1 << 64) - 1))
    function = getattr(libc, name)
    function.restype = ctypes.c_long
    result = function(*converted)
    # What returns an int may leave the upper half of its register alone.
    if result in (-1, 0xFFFFFFFF):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result, [buffer.raw for buffer in buffers]


def call_os(name: str, *arguments: Any, **keywords: Any) -> Any:
    """Call a function of the ``os`` module."""
    return getattr(os, name)(*arguments, **keywords)


def poke(addresses: list[int], data: bytes) -> None:
    """Write ``data`` at each address."""
    for address in addresses:
        ctypes.memmove(address, data, len(data))


def peek(addresses: list[int]) -> list[int]:
    """Return the byte at each address."""
    return [ctypes.string_at(address, 1)[0] for address in addresses]


def count_until(seconds: float, addresses: list[int]) -> int:
    """Write each address over and over for a while; return the rounds."""
    import time

    rounds, stop = 0, time.monotonic() + seconds
    while time.monotonic() < stop:
        poke(addresses, bytes([rounds % 255 + 1]))
        rounds += 1
    return rounds


def run_code(code: str, values: dict[str, Any]) -> Any:
    """Run Python ``code``, which leaves its answer in ``result``."""
    names = {"os": os, "ctypes": ctypes, "libc": libc, "result": None, **values}
    exec(code, names)
    return names["result"]


def die_with_parent() -> None:
    """Ask for SIGKILL when the parent ends, however it ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


COMMANDS = {
    "libc": call_libc,
    "os": call_os,
    "poke": poke,
    "peek": peek,
    "count_until": count_until,
    "run": run_code,
}


def serve(channel: socket.socket) -> None:
    """Answer requests until the other side closes."""
    while True:
        try:
            name, arguments, keywords = receive(channel)
        except (EOFError, ConnectionError):
            os._exit(0)
        if name == "fork":
            channel = _fork(channel)
            continue
        try:
            answer = (True, COMMANDS[name](*arguments, **keywords))
        except Exception as error:
            answer = (False, error)
        send(channel, answer)


def _fork(channel: socket.socket) -> socket.socket:
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    pid = os.fork()
    if pid:
        os.close(fds[0])
        send(channel, (True, pid))
        return channel
    die_with_parent()
    channel.close()
    return socket.socket(fileno=fds[0])


if __name__ == "__main__":
    die_with_parent()
    serve(socket.socket(fileno=int(sys.argv[1])))
