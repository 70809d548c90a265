"""
What a scan of all processes needs of /proc/PID/maps, without parsing every line.

Documentation/filesystems/proc.rst.  A line costs microseconds in Python, and a machine has
tens of thousands; most are private mappings and files on disks.
"""

import re
from bisect import bisect_left

from memlens.kernel.maps import Mapping, parse_mapping
from memlens.kernel.procfs import decode_bytes

# Only unnamed devices, major 0, can be a tmpfs; private memory has device 00:00 and inode 0.
_UNNAMED = re.compile(rb"[0-9a-f]+-[0-9a-f]+ .{4} [0-9a-f]+ 00:(?!00 0)[0-9a-f]+ [0-9]")
# A literal beginning makes this fast; a path may hold the same, so that lines are matched too.
_HINT = re.compile(rb" 00:(?!00 0)[0-9a-f]+ [0-9]")
# Beginning with a literal, too: the permissions of a shared mapping, and its offset.
_SHARED = re.compile(rb"s [0-9a-f]+ [0-9a-f]+:")
_RANGE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ...s ")
_SPAN_BYTES = 1 << 32
_USER_STOP = 1 << 63
# It costs less to scan over smaller shared mappings than to scan around them.
_SKIPPED_BYTES = 1 << 20


def parse_unnamed(raw: bytes, path: str = "/proc/PID/maps") -> list[Mapping]:
    r"""
    Return the mappings of objects on unnamed devices, as those of shared memory are.

    >>> raw = b"1000-3000 rw-p 0 00:00 0 \n4000-5000 rw-s 0 00:01 5 /dev/zero (deleted)\n"
    >>> [mapping.inode for mapping in parse_unnamed(raw)]
    [5]

    :param raw: text of the file.
    :param path: its name, for errors.
    :raises ParseError: if such a line is not as documented.
    """
    found = []
    number, counted, stop = 1, 0, -1
    for match in _HINT.finditer(raw):
        if match.start() < stop:
            continue
        start = raw.rfind(b"\n", counted, match.start()) + 1 or counted
        stop = raw.find(b"\n", start)
        line = raw[start : stop if stop >= 0 else len(raw)]
        if _UNNAMED.match(line):
            number += raw.count(b"\n", counted, start)
            counted = start
            found.append(parse_mapping(decode_bytes(line), number, path))
    return found


def private_ranges(raw: bytes) -> list[tuple[int, int]]:
    r"""
    Return half-open address ranges that cover all private mappings, in order.

    >>> raw = b"1000-3000 rw-p 0 00:00 0 \n40000000-80000000 rw-s 0 00:01 5 /a\n"
    >>> [(hex(start), hex(stop)) for start, stop in private_ranges(raw)]
    [('0x1000', '0x40000000')]

    They also cover holes, which PAGEMAP_SCAN passes over, but no large shared mapping:
    these hold no private page.
    """
    return mapped_ranges(raw, _large_shared(raw))


def mapped_ranges(raw: bytes, left_out: list[tuple[int, int]]) -> list[tuple[int, int]]:
    r"""
    Return half-open address ranges that cover all mappings but some, and holes, in order.

    >>> raw = b"1000-3000 rw-p 0 00:00 0 \n40000000-80000000 rw-s 0 00:01 5 /a\n"
    >>> [(hex(start), hex(stop)) for start, stop in mapped_ranges(raw, [(0x2000, 0x3000)])]
    [('0x1000', '0x2000'), ('0x3000', '0x80000000')]

    :param left_out: half-open ranges, in order.
    """
    lines = raw.split(b"\n")
    while lines and not lines[-1]:
        lines.pop()
    return _cut(_spans(lines), left_out)


def _spans(lines: list[bytes]) -> list[tuple[int, int]]:
    """Return the ranges of lines that lie close; few are parsed, for lines are in order."""
    found: list[tuple[int, int]] = []
    first = 0
    while first < len(lines):
        start = _start(lines[first])
        if start >= _USER_STOP:
            break
        first = bisect_left(lines, start + _SPAN_BYTES, first + 1, key=_start)
        stop = int(lines[first - 1].partition(b"-")[2].partition(b" ")[0], 16)
        if found and start - found[-1][1] < _SPAN_BYTES:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def _start(line: bytes) -> int:
    return int(line[: line.index(b"-")], 16)


def _large_shared(raw: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for hint in _SHARED.finditer(raw):
        line = raw.rfind(b"\n", 0, hint.start()) + 1
        match = _RANGE.match(raw, line)
        if match is None or match.end() != hint.start() + 2:
            continue
        start, stop = int(match[1], 16), int(match[2], 16)
        if stop - start >= _SKIPPED_BYTES:
            found.append((start, stop))
    return found


def _cut(ranges: list[tuple[int, int]], holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges without the holes, both in order."""
    found = []
    for start, stop in ranges:
        position = start
        for first, last in holes:
            if last <= position or first >= stop:
                continue
            if first > position:
                found.append((position, first))
            position = last
        if position < stop:
            found.append((position, stop))
    return found
