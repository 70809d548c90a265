r"""
/proc/PID/maps: the mappings of a process, as rows and as columns.

Documentation/filesystems/proc.rst.  Inodes are decimal, devices and offsets
hexadecimal; the path is the rest of the line, may hold spaces, may be empty,
and a newline in it reads ``\012``.

A line costs two microseconds in Python, and a process may have 65,000: one calculation parses
them all (``parse_maps_table``), for what differs from line to line is numbers, and what backs
them repeats.  For few lines that costs more than their rows do.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from sys import intern
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from memlens.errors import ParseError
from memlens.kernel.procfs import decode_bytes

_T = TypeVar("_T")
_NEWLINE, _SPACE, _DASH = b"\n -"
_MOST_DIGITS = 16
_DIGITS = np.full(256, 255, np.uint64)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

# A piece of text is common if more lines than one in so many, a power of two, have it.
_COMMON_SHIFT = 4


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


class Place(NamedTuple):
    """What is mapped, as maps prints it: device, inode and path."""

    device: str
    inode: int
    path: str


@dataclass(frozen=True, slots=True)
class MapsTable:
    r"""
    Mappings as columns, all ``(n,)``; ``table[3]`` is the row as a ``Mapping``.

    >>> table = parse_maps_table(b"1000-3000 rw-s 2000 00:01 5    /a\n")
    >>> table.stop.tolist(), table[0].path
    ([12288], '/a')

    :param start: first address, in bytes, uint64.
    :param stop: address after the last, uint64.
    :param offset_bytes: offset of ``start`` in the object, uint64.
    :param mode: number of its permissions in ``modes``, int32.
    :param place: number of what is mapped in ``places``, int32.
    """

    start: NDArray[np.uint64]
    stop: NDArray[np.uint64]
    offset_bytes: NDArray[np.uint64]
    mode: NDArray[np.int32]
    place: NDArray[np.int32]
    modes: Sequence[str]
    places: Sequence[Place]

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, row: int) -> Mapping:
        place = self.places[self.place[row]]
        return Mapping(
            int(self.start[row]),
            int(self.stop[row]),
            self.modes[self.mode[row]],
            int(self.offset_bytes[row]),
            *place,
        )

    def __iter__(self) -> Iterator[Mapping]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "MapsTable":
        """Return some of the rows."""
        return replace(
            self,
            start=self.start[rows],
            stop=self.stop[rows],
            offset_bytes=self.offset_bytes[rows],
            mode=self.mode[rows],
            place=self.place[rows],
        )

    def find(self, others: "MapsTable") -> NDArray[np.int64]:
        """Return the row that is the same mapping as each of others, -1 if none is."""
        if not len(self):
            return np.full(len(others), -1)
        order = np.argsort(self.start, kind="stable")
        at = order[np.minimum(np.searchsorted(self.start[order], others.start), len(self) - 1)]
        modes = _renumber(self.modes, others.modes)
        places = _renumber(self.places, others.places)
        is_same = (
            (self.start[at] == others.start)
            & (self.stop[at] == others.stop)
            & (self.offset_bytes[at] == others.offset_bytes)
            & (self.mode[at] == modes[others.mode])
            & (self.place[at] == places[others.place])
        )
        return np.where(is_same, at, -1)


def _renumber(known: Sequence[_T], wanted: Sequence[_T]) -> NDArray[np.int32]:
    """Return the number among ``known`` of each that is wanted, -1 if it is not there."""
    numbers = {one: number for number, one in enumerate(known)}
    return np.array([numbers.get(one, -1) for one in wanted], np.int32)


def parse_maps_table(raw: bytes, path: str = "/proc/PID/maps") -> MapsTable:
    """
    Return the mappings in the order of the lines.

    :param raw: text of the file.
    :param path: its name, for errors.
    :raises ParseError: if a line is not as documented.
    """
    lines = _find_lines(np.frombuffer(raw, np.uint8))
    table = _parse(lines) if lines is not None else None
    # Whatever is odd about a line, the parser of lines accepts or names.
    return table_of(parse_maps(raw, path)) if table is None else table


def table_of(mappings: Iterable[Mapping]) -> MapsTable:
    """Return mappings as columns."""
    rows = list(mappings)
    modes: dict[str, int] = {}
    places: dict[Place, int] = {}
    mode = [modes.setdefault(row.permissions, len(modes)) for row in rows]
    place = [places.setdefault(Place(*row[4:]), len(places)) for row in rows]
    numbers = [(row.start, row.stop, row.offset_bytes) for row in rows]
    try:
        start, stop, offset = np.array(numbers, np.uint64).reshape(-1, 3).T
    except OverflowError as error:
        raise ParseError("an address of more than 64 bits", path="maps") from error
    columns = np.array(mode, np.int32), np.array(place, np.int32)
    return MapsTable(start, stop, offset, *columns, tuple(modes), tuple(places))


def join_tables(tables: Sequence[MapsTable]) -> MapsTable:
    """Return the rows of all of some tables, one after the other."""
    if len(tables) == 1:
        return tables[0]
    modes: dict[str, int] = {}
    places: dict[Place, int] = {}
    mode, place = [], []
    for table in tables:
        numbers = [modes.setdefault(name, len(modes)) for name in table.modes]
        mode.append(np.array(numbers, np.int32)[table.mode])
        numbers = [places.setdefault(one, len(places)) for one in table.places]
        place.append(np.array(numbers, np.int32)[table.place])
    return MapsTable(
        np.concatenate([table.start for table in tables]),
        np.concatenate([table.stop for table in tables]),
        np.concatenate([table.offset_bytes for table in tables]),
        np.concatenate(mode),
        np.concatenate(place),
        tuple(modes),
        tuple(places),
    )


def overlaps(table: MapsTable, others: MapsTable) -> NDArray[np.bool_]:
    """Return which mappings of a table share addresses with any of others, ``(n,)`` bool."""
    if not len(others):
        return np.zeros(len(table), bool)
    order = np.argsort(others.start)
    stop = np.maximum.accumulate(others.stop[order])
    before = np.searchsorted(others.start[order], table.stop)
    return (before > 0) & (stop[np.maximum(before - 1, 0)] > table.start)


class _Lines(NamedTuple):
    """Where the fields of each line begin and end, ``(n,)`` int64 each."""

    text: NDArray[np.uint8]
    begin: NDArray[np.int64]
    dash: NDArray[np.int64]
    spaces: NDArray[np.int64]
    end: NDArray[np.int64]


def _find_lines(text: NDArray[np.uint8]) -> _Lines | None:
    """Return the fields of lines, None if there are none, or one is not as all others."""
    end = np.flatnonzero(text == _NEWLINE)
    if not len(end) or end[-1] != len(text) - 1:
        return None
    begin = np.append(0, end[:-1] + 1)
    spaces, dashes = np.flatnonzero(text == _SPACE), np.flatnonzero(text == _DASH)
    if not len(dashes) or not len(spaces):
        return None
    # Address, permissions, offset, device: a space after each, and after the inode too.
    at = np.searchsorted(spaces, begin)
    if at[-1] + 5 > len(spaces):
        return None
    space = spaces[at[:, np.newaxis] + np.arange(5)]
    dash = dashes[np.minimum(np.searchsorted(dashes, begin), len(dashes) - 1)]
    is_plain = (
        (begin < dash)
        & (dash < space[:, 0] - 1)
        & (space[:, 1] == space[:, 0] + 5)
        & (space[:, 2] > space[:, 1] + 1)
        & (space[:, 3] > space[:, 2] + 3)
        & (space[:, 4] > space[:, 3] + 1)
        & (space[:, 4] < end)
    )
    return _Lines(text, begin, dash, space, end) if is_plain.all() else None


def _parse(lines: _Lines) -> MapsTable | None:
    text, spaces = lines.text, lines.spaces
    start = _hexadecimal(text, lines.begin, lines.dash)
    stop = _hexadecimal(text, lines.dash + 1, spaces[:, 0])
    offset = _hexadecimal(text, spaces[:, 1] + 1, spaces[:, 2])
    if start is None or stop is None or offset is None:
        return None
    letters, mode = _number_of(text, spaces[:, 0] + 1, spaces[:, 1])
    tails, tail = _number_of(text, spaces[:, 2] + 1, lines.end)
    try:
        # Padding depends on the length of what is before it: two tails may be one place.
        numbers: dict[Place, int] = {}
        place = [numbers.setdefault(_parse_place(one), len(numbers)) for one in tails]
    except ValueError:
        return None
    of_tail = np.array(place, np.int32)
    modes = tuple(map(decode_bytes, letters))
    return MapsTable(start, stop, offset, mode, of_tail[tail], modes, tuple(numbers))


def _number_of(
    text: NDArray[np.uint8], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[list[bytes], NDArray[np.int32]]:
    """Return the distinct pieces of text, and the number of each piece among them."""
    found = np.empty(len(begin), np.int32)
    pieces: list[bytes] = []
    left, least = np.arange(len(begin)), len(begin) >> _COMMON_SHIFT
    while len(left):
        # What many lines share is compared with all at once.
        first, stop = int(begin[left[0]]), int(end[left[0]])
        alike = left[end[left] - begin[left] == stop - first]
        for place in range(stop - first):
            alike = alike[text[begin[alike] + place] == text[first + place]]
            if len(alike) <= least:
                break
        if len(alike) <= least:
            break
        found[alike] = len(pieces)
        pieces.append(text[first:stop].tobytes())
        is_left = np.ones(len(begin), bool)
        is_left[alike] = False
        left = left[is_left[left]]
    known = {piece: number for number, piece in enumerate(pieces)}
    raw = text.tobytes() if len(left) else b""
    places = zip(begin[left].tolist(), end[left].tolist(), strict=True)
    found[left] = [known.setdefault(raw[low:high], len(known)) for low, high in places]
    return list(known), found


def _parse_place(tail: bytes) -> Place:
    device, inode, *rest = decode_bytes(tail).split(None, 2)
    return Place(device, int(inode), rest[0] if rest else "")


def _hexadecimal(
    text: NDArray[np.uint8], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.uint64] | None:
    """Return the numbers in pieces of text, None if one of them is none."""
    length = end - begin
    digits = int(length.max())
    if digits > _MOST_DIGITS:
        return None
    found = np.zeros(len(begin), np.uint64)
    for number in range(digits):
        at = begin + number
        is_inside = at < end
        digit = _DIGITS[text[np.where(is_inside, at, begin)]]
        if (digit > 15).any():
            return None
        found = np.where(is_inside, found << np.uint64(4) | digit, found)
    return found


# What a scan of all processes needs of /proc/PID/maps, without parsing every line.
#
# Documentation/filesystems/proc.rst.  A line costs microseconds in Python, and a machine has
# tens of thousands; most are private mappings and files on disks.


# Only unnamed devices, major 0, can be a tmpfs; private memory has device 00:00 and inode 0.
_UNNAMED = re.compile(rb"[0-9a-f]+-[0-9a-f]+ .{4} [0-9a-f]+ 00:(?!00 0)[0-9a-f]+ [0-9]")

# A literal beginning makes this fast; a path may hold the same.
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
    # Most processes have none.
    if _HINT.search(raw) is None:
        return []
    return [
        parse_mapping(decode_bytes(line), number, path)
        for number, line in enumerate(raw.split(b"\n"), 1)
        if _UNNAMED.match(line)
    ]


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
