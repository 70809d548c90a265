r"""The list of swap areas, zram and zswap, on files made here."""

from pathlib import Path

import pytest

from memlens.errors import ParseError, Unsupported
from memlens.kernel.procfs import Host
from memlens.kernel.swaps import (
    SwapArea,
    ZramFigures,
    ZswapFigures,
    area_numbers,
    is_swap_cache_empty,
    parse_swaps,
    parse_zram,
    read_swap,
)

PAGE = 4096
HEADER = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
# As v6.18 prints them, with a name that holds a space, a tab, a newline and a backslash.
SWAPS = HEADER + (
    b"/dev/zram0                              partition\t524284\t\t3072\t\t100\n"
    b"/var/a\\040b\\011c\\012d\\134e              file\t\t262140\t\t0\t\t-2\n"
    b"/swap\\040file\\040(deleted)            file\t\t8188\t\t8188\t\t-3\n"
)
# Three pages of one word, two of noise, four of text were written to a real device.
MM_STAT = b"   36864     8247    12288        0    16384        3        0        2        2\n"


def test_areas() -> None:
    assert parse_swaps(SWAPS, PAGE) == (
        SwapArea(0, "/dev/zram0", "partition", 131071, 768, 100),
        SwapArea(1, "/var/a b\tc\nd\\e", "file", 65535, 0, -2),
        SwapArea(2, "/swap file (deleted)", "file", 2047, 2047, -3),
    )


def test_larger_pages() -> None:
    assert parse_swaps(SWAPS, 65536)[0].size_pages == 524284 // 64


def test_bytes_that_are_not_utf_8_survive() -> None:
    area = parse_swaps(HEADER + b"/\xff file 4 0 -2\n", PAGE)[0]
    assert area.path.encode("utf-8", "surrogateescape") == b"/\xff"


def test_no_areas() -> None:
    assert parse_swaps(HEADER, PAGE) == ()


@pytest.mark.parametrize(
    ("raw", "line_number"),
    [
        (b"", 1),
        (b"something else\n", 1),
        (HEADER + b"/a file 8 0\n", 2),
        (HEADER + b"/a file 8 0 -2\n/b file 8 none -3\n", 3),
        (HEADER + b"/a file 8 0 -2 7\n", 2),
    ],
)
def test_damage_is_an_error_that_says_where(raw: bytes, line_number: int) -> None:
    with pytest.raises(ParseError) as caught:
        parse_swaps(raw, PAGE, "/there/swaps")
    assert caught.value.line_number == line_number
    assert caught.value.path == "/there/swaps"


def test_area_numbers_keep_order_and_hide_gaps() -> None:
    assert area_numbers(0, 1) == range(23)
    assert area_numbers(0, 3) == range(21)
    assert area_numbers(2, 3) == range(2, 23)
    assert area_numbers(22, 23) == range(22, 23)
    # More than there can be by what is known: still never empty.
    assert area_numbers(24, 25) == range(24, 25)


@pytest.mark.parametrize(("line", "areas"), [(-1, 1), (1, 1), (0, 0)])
def test_area_numbers_of_no_area(line: int, areas: int) -> None:
    with pytest.raises(ValueError, match="line"):
        area_numbers(line, areas)


def test_zram_figures() -> None:
    assert parse_zram(MM_STAT, "zram7") == ZramFigures(
        "zram7", 36864, 8247, 12288, 0, 16384, 3, 2
    )


def test_zram_figures_of_old_kernels_end_early() -> None:
    assert parse_zram(b"8192 74 4096 0 4096 1 0\n", "zram0").huge_pages == 0


@pytest.mark.parametrize("raw", [b"", b"1 2 3\n", b"1 2 3 4 5 x 7 8\n"])
def test_zram_damage(raw: bytes) -> None:
    with pytest.raises(ParseError):
        parse_zram(raw, "zram0", "/sys/block/zram0/mm_stat")


class Roots:
    """A /proc and a /sys in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.sys = directory / "sys"
        self.proc.mkdir()
        self.write("proc/meminfo", b"MemTotal: 8 kB\nZswap:  12 kB\nZswapped:  40 kB\n")

    def write(self, name: str, content: bytes) -> None:
        path = self.proc.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path)


def test_zram_is_told_from_a_partition(roots: Roots) -> None:
    # No such node here, as for a reader in another mount namespace: by its name.
    roots.write(
        "proc/swaps", HEADER + b"/gone/zram77 partition 8 4 -2\n/gone/sda1 partition 8 4 -3\n"
    )
    roots.write("sys/block/zram77/mm_stat", MM_STAT)
    swap = read_swap(Host(str(roots.proc), str(roots.sys), PAGE))
    assert [(area.kind, area.device) for area in swap.areas] == [
        ("zram", "zram77"),
        ("partition", ""),
    ]
    assert [zram.stored_bytes for zram in swap.zram] == [36864]
    assert swap.notes == ()


def test_a_file_named_like_a_device_is_a_file(roots: Roots) -> None:
    roots.write("proc/swaps", HEADER + b"/swap/zram0 file 8 4 -2\n")
    assert read_swap(Host(str(roots.proc), str(roots.sys), PAGE)).areas[0].kind == "file"


def test_zram_without_figures_is_noted(roots: Roots) -> None:
    roots.write("proc/swaps", HEADER + b"/gone/zram77 partition 8 4 -2\n")
    swap = read_swap(Host(str(roots.proc), str(roots.sys), PAGE))
    assert swap.zram == ()
    assert len(swap.notes) == 1
    assert "zram77/mm_stat" in swap.notes[0]


@pytest.mark.parametrize(("enabled", "is_enabled"), [(b"Y\n", True), (b"N\n", False)])
def test_zswap(roots: Roots, enabled: bytes, is_enabled: bool) -> None:
    roots.write("proc/swaps", HEADER)
    roots.write("sys/module/zswap/parameters/enabled", enabled)
    roots.write("sys/module/zswap/parameters/compressor", b"zstd\n")
    swap = read_swap(Host(str(roots.proc), str(roots.sys), PAGE))
    assert swap.zswap == ZswapFigures(is_enabled, "zstd", 12 << 10, 40 << 10)
    roots.write("proc/meminfo", b"MemTotal: 8 kB\n")
    swap = read_swap(Host(str(roots.proc), str(roots.sys), PAGE))
    assert swap.zswap == ZswapFigures(is_enabled, "zstd", None, None)


def test_no_zswap(roots: Roots) -> None:
    roots.write("proc/swaps", HEADER)
    assert read_swap(Host(str(roots.proc), str(roots.sys), PAGE)).zswap is None


def test_no_swap_in_this_kernel(roots: Roots) -> None:
    with pytest.raises(Unsupported, match="CONFIG_SWAP"):
        read_swap(Host(str(roots.proc), str(roots.sys), PAGE))


def make_vmstat(path: Path, vmstat: str, has_refresh: bool = True) -> str:
    (path / "sys/vm").mkdir(parents=True)
    if has_refresh:
        (path / "sys/vm/stat_refresh").write_text("")
    (path / "vmstat").write_text(vmstat)
    return str(path)


@pytest.mark.parametrize(
    ("vmstat", "is_empty"),
    [
        ("nr_shmem 1\nnr_swapcached 0\nnr_x 2\n", True),
        ("nr_shmem 1\nnr_swapcached 7\n", False),
        ("nr_shmem 1\n", False),
        ("x_nr_swapcached 0\n", False),
    ],
)
def test_only_a_zero_proves_it(tmp_path: Path, vmstat: str, is_empty: bool) -> None:
    assert is_swap_cache_empty(Host(make_vmstat(tmp_path, vmstat))) is is_empty


def test_without_the_refresh_a_zero_proves_nothing(tmp_path: Path) -> None:
    assert not is_swap_cache_empty(Host(make_vmstat(tmp_path, "a\nnr_swapcached 0\n", False)))
