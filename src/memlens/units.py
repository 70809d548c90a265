"""Pages, bytes, addresses, ranges and users, to text and back."""

import pwd
import re
from functools import lru_cache

ADDRESS_LIMIT = 1 << 64
_SUFFIXES = ("K", "M", "G", "T", "P", "E")
_ADDRESS = re.compile(r"(0[xX])?([0-9a-fA-F]+)\Z")
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def parse_address(text: str) -> int:
    """
    Return a hexadecimal address, as /proc/PID/maps prints it; ``0x`` is optional.

    >>> hex(parse_address("7fff00001000"))
    '0x7fff00001000'

    :raises ValueError: if it is not hexadecimal or does not fit 64 bits.
    """
    match = _ADDRESS.match(text.strip())
    if match is None:
        raise ValueError(f"not a hexadecimal address: {text!r}")
    address = int(match[2], 16)
    if address >= ADDRESS_LIMIT:
        raise ValueError(f"address beyond 64 bits: {text!r}")
    return address


def parse_range(text: str) -> tuple[int, int]:
    """
    Return the half-open range of addresses ``START-STOP``.

    >>> parse_range("1000-3000")
    (4096, 12288)

    :raises ValueError: if it is malformed or empty.
    """
    start_text, dash, stop_text = text.partition("-")
    if not dash:
        raise ValueError(f"not a range START-STOP: {text!r}")
    start = parse_address(start_text)
    # The end of the last page does not fit 64 bits, but is a fine bound.
    stop = (
        ADDRESS_LIMIT if _hex_or_none(stop_text) == ADDRESS_LIMIT else parse_address(stop_text)
    )
    if start >= stop:
        raise ValueError(f"empty range: {text!r}")
    return start, stop


def count_of(number: int, one: str, many: str) -> str:
    """
    Return a number with its noun.

    >>> count_of(1, "process", "processes")
    '1 process'
    """
    return f"{number} {one if number == 1 else many}"


def format_size(size_bytes: float) -> str:
    """
    Return a size in at most five characters, in powers of 1024.

    >>> [format_size(n) for n in (0, 4096, 1536 << 10, 10 << 30, 1 << 50)]
    ['0', '4K', '1.5M', '10G', '1P']
    """
    value = float(size_bytes)
    suffix = ""
    for suffix_next in _SUFFIXES:
        if abs(value) < 999.5 and (suffix or abs(value) < 1000):
            break
        value /= 1024
        suffix = suffix_next
    text = f"{value:.1f}" if suffix and abs(value) < 9.95 else f"{value:.0f}"
    return text.removesuffix(".0") + suffix


@lru_cache(maxsize=1024)
def user_name(uid: int) -> str:
    """
    Return the name of a user of this machine, the number if it has none.

    >>> user_name(0), user_name(4294967294)
    ('root', '4294967294')
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def signed(number: int) -> int:
    """
    Return an unsigned number of 64 bits as its bit pattern, signed.

    >>> [signed(7), signed((1 << 64) - 1)]
    [7, -1]
    """
    return number - (1 << 64) if number >> 63 else number


def escape_text(text: str) -> str:
    r"""
    Return text that cannot move the cursor or hide anything in a terminal.

    >>> print(escape_text("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    shown = _CONTROL.sub(lambda match: _escape_character(match[0]), text)
    # Bytes that are not UTF-8 arrive as lone surrogates, which cannot be printed.
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def _escape_character(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _hex_or_none(text: str) -> int | None:
    match = _ADDRESS.match(text.strip())
    return int(match[2], 16) if match else None
