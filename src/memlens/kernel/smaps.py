"""
/proc/PID/smaps: the figures of mappings, as blocks and as columns.

Documentation/filesystems/proc.rst.  A mapping has some 25 lines there, always the same on one
kernel, so that the file is a table whose cells are found by counting lines; 65,000 mappings are
50 MiB of text, which is parsed a piece at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.errors import ParseError
from memlens.kernel.maps import (
    Mapping,
    MapsTable,
    join_tables,
    parse_mapping,
    parse_maps_table,
    table_of,
)
from memlens.kernel.procfs import decode_bytes

if TYPE_CHECKING:
    from memlens.kernel.process import ProcessDir

_PIECE_BYTES = 1 << 20
_NEWLINE, _ZERO, _LETTER = b"\n0A"
_KB = len(" kB")
_MOST_DIGITS = 18


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


class SmapsTable(NamedTuple):
    """
    Mappings and some of their figures.

    :param maps: their first lines.
    :param size_bytes: the figures asked for, in bytes, by name, ``(n,)`` int64 each; 0 where
        the kernel does not give it.
    """

    maps: MapsTable
    size_bytes: dict[str, NDArray[np.int64]]


def join_smaps_pieces(
    reads: Iterable[bytes], names: Sequence[str], path: str = "/proc/PID/smaps"
) -> SmapsTable:
    """
    Return some figures of every mapping of a file that is read bit by bit.

    :param reads: what each read gave, in order.
    :param names: as smaps has them, of figures in kB.
    :raises ParseError: if a line is not as documented.
    """
    parts = [parse_smaps_table(raw, names, path) for raw in _pieces(reads)]
    maps = join_tables([part.maps for part in parts])
    columns = {
        name: np.concatenate([part.size_bytes[name] for part in parts]) for name in names
    }
    return SmapsTable(maps, columns)


def read_smaps(process: "ProcessDir") -> list[MappingFigures]:
    """
    Return the figures of every mapping of a process now.

    The kernel walks all page tables for it, with the mmap lock held.

    :raises MemlensError: as the read gives it, or if a line is not as documented.
    """
    return parse_smaps(process.read("smaps"), f"{process.path}/smaps")


def parse_smaps_table(
    raw: bytes, names: Sequence[str], path: str = "/proc/PID/smaps"
) -> SmapsTable:
    r"""
    Return some figures of whole blocks of smaps.

    >>> raw = b"1000-3000 rw-p 0 00:00 0 \nRss:     8 kB\nSwap:     0 kB\n"
    >>> parse_smaps_table(raw, ["Rss"]).size_bytes
    {'Rss': array([8192])}

    :raises ParseError: if a line is not as documented.
    """
    found = _parse(raw, names, path)
    if found is not None:
        return found
    rows = parse_smaps(raw, path)
    figures = {
        name: np.array([row.size_bytes.get(name, 0) for row in rows], np.int64)
        for name in names
    }
    return SmapsTable(table_of(row.mapping for row in rows), figures)


def _pieces(reads: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the file in pieces that end where a block does."""
    waiting: list[bytes] = []
    size = 0
    for part in reads:
        waiting.append(part)
        size += len(part)
        if size >= _PIECE_BYTES:
            raw = b"".join(waiting)
            # The last line of a block; none is cut by the end of a read.
            stop = raw.find(b"\n", raw.rfind(b"\nVmFlags:") + 1) + 1
            yield raw[:stop]
            waiting = [raw[stop:]]
            size = len(waiting[0])
    yield b"".join(waiting)


def _parse(raw: bytes, names: Sequence[str], path: str) -> SmapsTable | None:
    """Return the figures if all blocks have the same lines, else None."""
    text = np.frombuffer(raw, np.uint8)
    end = np.flatnonzero(text == _NEWLINE)
    if not len(end) or end[-1] != len(text) - 1:
        return None
    begin = np.append(0, end[:-1] + 1)
    # Figures begin with a capital letter, addresses with a hexadecimal digit.
    initial = text[begin]
    heads = np.flatnonzero((initial < _LETTER) | (initial > _LETTER + 25))
    lines = len(begin) // max(len(heads), 1)
    if not len(heads) or not np.array_equal(heads, np.arange(len(heads)) * lines):
        return None
    if len(begin) != len(heads) * lines:
        return None
    first, last = begin.reshape(-1, lines), end.reshape(-1, lines)
    labels = [
        raw[a:b].partition(b":")[0].decode() for a, b in zip(first[0], last[0], strict=True)
    ]
    columns = {}
    for name in names:
        if name not in labels:
            columns[name] = np.zeros(len(heads), np.int64)
            continue
        line = labels.index(name)
        figure = _figure(text, first[:, line], last[:, line], name)
        if figure is None:
            return None
        columns[name] = figure
    rows = zip(first[:, 0].tolist(), (last[:, 0] + 1).tolist(), strict=True)
    maps = parse_maps_table(b"".join([raw[a:b] for a, b in rows]), path)
    return SmapsTable(maps, columns)


def _figure(
    text: NDArray[np.uint8], begin: NDArray[np.int64], end: NDArray[np.int64], name: str
) -> NDArray[np.int64] | None:
    """Return the numbers of lines ``Name:     8 kB``, in bytes; None if any is not."""
    letters = name.encode() + b":"
    if (end - begin <= len(letters) + _KB).any():
        return None
    for place, letter in enumerate(letters):
        if (text[begin + place] != letter).any():
            return None
    at = end - _KB - 1
    found, scale = np.zeros(len(begin), np.int64), 1
    is_digit = np.ones(len(begin), bool)
    for number in range(_MOST_DIGITS):
        digit = text[at - number] - np.uint8(_ZERO)
        is_digit &= digit <= 9
        if not is_digit.all() and number == 0:
            return None
        if not is_digit.any():
            return found * 1024
        found += np.where(is_digit, digit.astype(np.int64), 0) * scale
        scale *= 10
    return None
