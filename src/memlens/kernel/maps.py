r"""
/proc/PID/maps and /proc/PID/smaps: the mappings of a process.

Documentation/filesystems/proc.rst.  Inodes are decimal, devices and offsets
hexadecimal; the path is the rest of the line, may hold spaces, may be empty,
and a newline in it reads ``\012``.
"""

import re
from bisect import bisect_left
from sys import intern
from typing import NamedTuple

from memlens.errors import ParseError
from memlens.kernel.procfs import decode_bytes

# What maps prints for a newline, and how many are read in both ways.
_NEWLINE = "\\012"
_NEWLINES_READ = 3


class Mapping(NamedTuple):
    """
    One line of /proc/PID/maps.

    :param start: first address, in bytes.
    :param stop: address after the last, in bytes.
    :param permissions: four letters, ``rw-s``.
    :param offset_bytes: offset of ``start`` in the object.
    :param device: ``major:minor``, hexadecimal, as printed.
    :param inode: inode number; 0 if there is none, or of the first System V segment of an
        IPC namespace, whose numbers are inodes.
    :param path: the rest of the line, verbatim.
    """

    start: int
    stop: int
    permissions: str
    offset_bytes: int
    device: str
    inode: int
    path: str

    @property
    def is_shared(self) -> bool:
        """Return whether writes go to the object (MAP_SHARED)."""
        return self.permissions[3:4] == "s"

    @property
    def has_object(self) -> bool:
        """Return whether an object backs it; anonymous private memory has none."""
        return self.inode != 0 or self.device != "00:00"

    @property
    def name(self) -> str:
        """Return the name of the entry in /proc/PID/map_files."""
        return f"{self.start:x}-{self.stop:x}"


def possible_paths(path: str) -> list[str]:
    r"""
    Return the names that a mapped file may really have, going by what maps prints.

    >>> possible_paths("/d/a\\012b")
    ['/d/a\nb', '/d/a\\012b']

    A newline is printed as ``\012`` and a backslash as itself; `` (deleted)`` may belong to
    the name.  What is found by one of them must be proven to be what is mapped.  Of a
    name with many newlines not all readings are given: see ``has_all_paths``.
    """
    parts = path.split(_NEWLINE)
    if not has_all_paths(path):
        return ["\n".join(parts), path]
    names = parts[:1]
    for part in parts[1:]:
        names = [name + between + part for name in names for between in ("\n", _NEWLINE)]
    return names


def has_all_paths(path: str) -> bool:
    """Return whether ``possible_paths`` gives every name that a file may have."""
    return path.count(_NEWLINE) <= _NEWLINES_READ


class MappingFigures(NamedTuple):
    """
    One block of /proc/PID/smaps.

    :param mapping: its first line.
    :param size_bytes: every figure that is given in kB, by name, in bytes.
    :param vm_flags: two letters each, as ``VmFlags`` lists them.
    """

    mapping: Mapping
    size_bytes: dict[str, int]
    vm_flags: frozenset[str] = frozenset()

    @property
    def is_hugetlb(self) -> bool:
        """Return whether it is of hugetlbfs, which ``Rss`` leaves out."""
        return "ht" in self.vm_flags or any(
            self.size_bytes.get(name) for name in ("Private_Hugetlb", "Shared_Hugetlb")
        )

    @property
    def is_watched(self) -> bool:
        """Return whether userfaultfd watches it: for missing pages, writes or minor faults."""
        return not self.vm_flags.isdisjoint(("um", "uw", "ui"))


def parse_maps(raw: bytes, path: str = "/proc/PID/maps") -> list[Mapping]:
    r"""
    Return the mappings in the order of their addresses.

    >>> parse_maps(b"1000-3000 rw-s 00002000 00:01 5    /dev/zero (deleted)\n")[0].path
    '/dev/zero (deleted)'

    :param raw: text of the file.
    :param path: its name, for errors.
    :raises ParseError: if a line is not as documented.
    """
    return [
        parse_mapping(line, number, path)
        for number, line in enumerate(decode_bytes(raw).split("\n"), 1)
        if line
    ]


def parse_mapping(line: str, number: int, path: str) -> Mapping:
    """
    Return one line of maps.

    :raises ParseError: if it is not as documented.
    """
    fields = line.split(None, 5)
    try:
        addresses, permissions, offset, device, inode = fields[:5]
        start, _, stop = addresses.partition("-")
        return Mapping(
            start=int(start, 16),
            stop=int(stop, 16),
            # The same for many mappings.
            permissions=intern(permissions),
            offset_bytes=int(offset, 16),
            device=intern(device),
            inode=int(inode),
            path=intern(fields[5]) if len(fields) > 5 else "",
        )
    except ValueError as error:
        raise ParseError("not a mapping", path=path, line_number=number, text=line) from error


def parse_smaps(raw: bytes, path: str = "/proc/PID/smaps") -> list[MappingFigures]:
    r"""
    Return the figures of every mapping.

    >>> block = b"1000-3000 rw-p 0 00:00 0 \nSwap:     8 kB\nVmFlags: rd wr \n"
    >>> parse_smaps(block)[0].size_bytes
    {'Swap': 8192}

    :raises ParseError: if a line is not as documented.
    """
    found: list[MappingFigures] = []
    for number, line in enumerate(decode_bytes(raw).split("\n"), 1):
        if not line:
            continue
        name, colon, rest = line.partition(":")
        if not colon or not name.replace("_", "").isalnum() or " " in name:
            found.append(MappingFigures(parse_mapping(line, number, path), {}))
        elif not found:
            raise ParseError("figure before mapping", path=path, line_number=number, text=line)
        elif name == "VmFlags":
            last = found[-1]
            found[-1] = MappingFigures(last.mapping, last.size_bytes, frozenset(rest.split()))
        elif rest.endswith(" kB"):
            found[-1].size_bytes[name] = int(rest[:-3]) * 1024
    return found


# What a scan of all processes needs of /proc/PID/maps, without parsing every line.
#
# Documentation/filesystems/proc.rst.  A line costs microseconds in Python, and a machine has
# tens of thousands; most are private mappings and files on disks.


# Only unnamed devices, major 0, can be a tmpfs; private memory has device 00:00 and inode 0.
_UNNAMED = re.compile(rb"[0-9a-f]+-[0-9a-f]+ .{4} [0-9a-f]+ 00:(?!00 0)[0-9a-f]+ [0-9]")

# A literal beginning makes this fast; a path may hold the same, so that lines are matched too.
_HINT = re.compile(rb" 00:(?!00 0)[0-9a-f]+ [0-9]")

# Beginning with a literal, too: the permissions of a shared mapping, and its offset.
_SHARED = re.compile(rb"s [0-9a-f]+ [0-9a-f]+:")
_RANGE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ...s ")
_SPAN_BYTES = 1 << 32
# Above this address is the kernel's half, which no page table of a process covers.
KERNEL_HALF = 1 << 63

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
        if start >= KERNEL_HALF:
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
