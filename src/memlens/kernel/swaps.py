r"""
/proc/swaps, and the figures of compressed swap: zram and zswap.

Documentation/filesystems/proc.rst, Documentation/admin-guide/blockdev/zram.rst,
Documentation/admin-guide/mm/zswap.rst.  Paths in /proc/swaps are escaped (``\040``).
"""

import os
import re
import stat
from dataclasses import dataclass, replace

from memlens.errors import ParseError, Unsupported
from memlens.kernel.procfs import Host, decode_bytes, raise_errno, read_file, unescape_path

# Numbers from here up are markers, migrations and device memory on some kernels
# (include/linux/swap.h); no area can have one there.
AREA_NUMBERS = 23
_ZRAM = re.compile(r"zram[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class SwapArea:
    """
    One line of /proc/swaps.

    :param line: 0 for the first area.  Lines are in the order of area numbers.
    :param path: of the device or file, decoded; ends in `` (deleted)`` if it was unlinked.
    :param kind: ``partition``, ``file`` or ``zram``.
    :param size_pages: slots that can be used; the header is not among them.
    :param used_pages: slots that are taken.
    :param priority: higher ones are filled first; negative ones were given by the kernel.
    :param device: name in /sys/block, for zram only.
    """

    line: int
    path: str
    kind: str
    size_pages: int
    used_pages: int
    priority: int
    device: str = ""


@dataclass(frozen=True, slots=True)
class ZramFigures:
    """
    What a zram device holds, from /sys/block/zramN/mm_stat.

    :param device: name in /sys/block.
    :param stored_bytes: pages stored, uncompressed, those of one repeated word included.
    :param compressed_bytes: what they compress to.
    :param used_bytes: RAM taken, with the allocator's waste.
    :param limit_bytes: most that it may take, 0 for no limit.
    :param peak_bytes: most that it has taken.
    :param same_pages: pages of one repeated word, which take no RAM.
    :param huge_pages: pages that would not compress, 0 on kernels that do not count them.
    """

    device: str
    stored_bytes: int
    compressed_bytes: int
    used_bytes: int
    limit_bytes: int
    peak_bytes: int
    same_pages: int
    huge_pages: int


@dataclass(frozen=True, slots=True)
class ZswapFigures:
    """
    The compressed cache in RAM before swap; its pages count as swapped everywhere else.

    :param is_enabled: whether pages that go to swap are taken in now.
    :param compressor: name of the algorithm.
    :param pool_bytes: RAM taken, None before v5.19.
    :param stored_bytes: pages stored, uncompressed, None before v5.19.

    A zswap that was switched off keeps what it holds.
    """

    is_enabled: bool
    compressor: str
    pool_bytes: int | None
    stored_bytes: int | None


@dataclass(frozen=True, slots=True)
class Swap:
    """All of swap: the areas, their zram devices, and zswap if the kernel has it."""

    areas: tuple[SwapArea, ...] = ()
    zram: tuple[ZramFigures, ...] = ()
    zswap: ZswapFigures | None = None
    notes: tuple[str, ...] = ()


def parse_swaps(
    raw: bytes, page_size_bytes: int, path: str = "/proc/swaps"
) -> tuple[SwapArea, ...]:
    r"""
    Return the swap areas in the order of their numbers.

    >>> parse_swaps(b"Filename Type Size Used Priority\n/a\\040b file 8 4 -2\n", 4096)[0].path
    '/a b'

    :param raw: text of the file.
    :param page_size_bytes: size of a page; the kernel gives KiB.
    :param path: its name, for errors.
    :raises ParseError: if a line is not as documented.
    """
    lines = decode_bytes(raw).split("\n")
    if lines[0].split() != ["Filename", "Type", "Size", "Used", "Priority"]:
        raise ParseError("not a list of swap areas", path=path, line_number=1, text=lines[0])
    found = []
    for number, line in enumerate(lines[1:], 2):
        if line:
            found.append(_parse_area(line, number, page_size_bytes, path))
    return tuple(found)


def _parse_area(line: str, number: int, page_size_bytes: int, path: str) -> SwapArea:
    fields = line.split()
    try:
        name, kind, size, used, priority = fields
        return SwapArea(
            line=number - 2,
            path=unescape_path(name),
            kind=kind,
            size_pages=int(size) * 1024 // page_size_bytes,
            used_pages=int(used) * 1024 // page_size_bytes,
            priority=int(priority),
        )
    except ValueError as error:
        raise ParseError("not a swap area", path=path, line_number=number, text=line) from error


def area_numbers(line: int, areas: int) -> range:
    """
    Return the numbers that an area can have in page-table entries.

    >>> area_numbers(0, 1)[0], area_numbers(2, 3)[0]
    (0, 2)

    :param line: its line in /proc/swaps, 0 for the first.
    :param areas: how many there are.

    A new area takes the lowest free number, so the first of the range is the right one
    unless an area before it was switched off since; lines keep the order of numbers, but
    not the gaps.
    """
    if not 0 <= line < areas:
        raise ValueError(f"line {line} of {areas}")
    return range(line, max(AREA_NUMBERS, areas) - (areas - 1 - line))


def parse_zram(raw: bytes, device: str, path: str = "") -> ZramFigures:
    r"""
    Return the figures of mm_stat.

    >>> parse_zram(b"8192 74 12288 0 12288 3 0 0 0\n", "zram0").same_pages
    3

    :raises ParseError: if it is not as documented.
    """
    try:
        numbers = [int(text) for text in raw.split()]
        stored, compressed, used, limit, peak, same = numbers[:6]
    except ValueError as error:
        text = decode_bytes(raw).strip()
        raise ParseError("not mm_stat", path=path, line_number=1, text=text) from error
    # Column 7 is pages_compacted; older kernels end there.
    huge = numbers[7] if len(numbers) > 7 else 0
    return ZramFigures(device, stored, compressed, used, limit, peak, same, huge)


def parse_meminfo(raw: bytes) -> dict[str, int]:
    r"""
    Return the figures of /proc/meminfo that are sizes, in bytes.

    >>> parse_meminfo(b"Zswap:  8 kB\nHugePages_Total: 3\n")
    {'Zswap': 8192}
    """
    found = {}
    for line in raw.decode().split("\n"):
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = int(rest[:-3]) * 1024
    return found


def read_swap(host: Host) -> Swap:
    """
    Return the swap areas and what compressed swap holds.

    :raises Unsupported: if the kernel has no swap (CONFIG_SWAP).
    :raises ParseError: if a file is not as documented.

    Figures that cannot be read are left out, with a note.
    """
    areas = tuple(
        _with_device(area, host)
        for area in parse_swaps(_read_swaps(host), host.page_size_bytes)
    )
    zram, notes = [], []
    for device in dict.fromkeys(area.device for area in areas if area.device):
        path = f"{host.sys}/block/{device}/mm_stat"
        try:
            zram.append(parse_zram(read_file(path), device, path))
        except OSError as error:
            notes.append(f"{path}: {os.strerror(error.errno or 0)}")
    return Swap(areas, tuple(zram), read_zswap(host), tuple(notes))


def read_zswap(host: Host) -> ZswapFigures | None:
    """Return the state of zswap, None if this kernel has none or hides it."""
    base = f"{host.sys}/module/zswap/parameters"
    try:
        enabled = read_file(f"{base}/enabled")
        compressor = read_file(f"{base}/compressor")
        sizes = parse_meminfo(read_file(f"{host.root}/meminfo"))
    except OSError:
        return None
    return ZswapFigures(
        is_enabled=enabled.strip() in (b"Y", b"1"),
        compressor=decode_bytes(compressor).strip(),
        pool_bytes=sizes.get("Zswap"),
        stored_bytes=sizes.get("Zswapped"),
    )


def _read_swaps(host: Host) -> bytes:
    path = f"{host.root}/swaps"
    try:
        return read_file(path)
    except FileNotFoundError as error:
        raise Unsupported("this kernel has no swap (CONFIG_SWAP)", path=path) from error
    except OSError as error:
        raise_errno(error, "cannot read the swap areas", path)


def _with_device(area: SwapArea, host: Host) -> SwapArea:
    """Return the area with its kind, which /proc/swaps calls partition for zram too."""
    name = os.path.basename(area.path)
    try:
        status = os.stat(area.path)
    except OSError:
        # In another mount namespace, or deleted: the name is all there is.
        status = None
    if status is not None and stat.S_ISBLK(status.st_mode):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        name = os.path.basename(os.path.realpath(f"{host.sys}/dev/block/{number}"))
    if area.kind == "partition" and _ZRAM.match(name):
        return replace(area, kind="zram", device=name)
    return area


# Whether the swap cache is empty: then no page is on swap and in RAM at once.
#
# /proc/sys/vm/stat_refresh (Documentation/admin-guide/sysctl/vm.rst) and ``nr_swapcached`` of
# /proc/vmstat.  /proc/meminfo says the same, but in containers it may be made up (lxcfs).


def is_swap_cache_empty(host: Host) -> bool:
    """
    Return whether no page at all was in the swap cache at one moment of the call.

    Counters stay with their CPU up to a second before they are added to the total; the
    refresh adds them now.  It needs root: False also means that this is not known.
    """
    try:
        read_file(f"{host.root}/sys/vm/stat_refresh")
        figures = read_file(f"{host.root}/vmstat")
    except OSError:
        return False
    return b"\nnr_swapcached 0\n" in figures
