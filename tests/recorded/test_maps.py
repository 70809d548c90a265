"""/proc/PID/maps and smaps of other kernels, and of processes whose memory is known."""

import json
from pathlib import Path
from typing import Any

import pytest

from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.smaps import MappingFigures, parse_smaps

HERE = Path(__file__).parent
VARIANTS = HERE / "variants"
KERNELS = sorted(path.parent for path in HERE.glob("*/made.json"))


def names(path: Path) -> str:
    return path.name


def recorded(directory: Path) -> tuple[int, list[dict[str, Any]]]:
    record = json.loads((directory / "made.json").read_text())
    return record["kernel"]["page_size_bytes"], record["made"]


def test_there_are_records() -> None:
    assert KERNELS


@pytest.mark.parametrize("directory", KERNELS, ids=names)
def test_maps_says_what_was_made(directory: Path) -> None:
    _, made = recorded(directory)
    found = {m.start: m for m in parse_maps((directory / "maps").read_bytes())}
    for row in made:
        mapping = found[row["start"]]
        said = {name: getattr(mapping, name) for name in row if name != "touched_pages"}
        assert said == {name: row[name] for name in said}


@pytest.mark.parametrize("directory", KERNELS, ids=names)
def test_maps_loses_no_line_and_no_character(directory: Path) -> None:
    raw = (directory / "maps").read_bytes()
    assert [as_the_kernel_prints(m) for m in parse_maps(raw)] == raw.splitlines()


@pytest.mark.parametrize("directory", KERNELS, ids=names)
def test_smaps_counts_what_was_touched(directory: Path) -> None:
    page_size_bytes, made = recorded(directory)
    found = {f.mapping.start: f for f in parse_smaps((directory / "smaps").read_bytes())}
    for row in made:
        figures = found[row["start"]]
        touched_bytes = row["touched_pages"] * page_size_bytes
        is_copied = row["permissions"].endswith("p")
        assert figures.size_bytes["Rss"] == touched_bytes, row
        assert figures.size_bytes["Anonymous"] == is_copied * touched_bytes, row
        assert figures.size_bytes["Swap"] == 0
        assert figures.size_bytes["Size"] == row["stop"] - row["start"]
        assert ("sh" in figures.vm_flags) is not is_copied


@pytest.mark.parametrize("directory", KERNELS, ids=names)
def test_smaps_holds_the_mappings_of_maps(directory: Path) -> None:
    # Reading a file allocates, so that the heap may have grown between the two.
    maps = parse_maps((directory / "maps").read_bytes())
    smaps = [figures.mapping for figures in parse_smaps((directory / "smaps").read_bytes())]
    assert [m for m in smaps if m.path] == [m for m in maps if m.path]


def as_the_kernel_prints(mapping: Mapping) -> bytes:
    """Print a mapping as show_map_vma() of fs/proc/task_mmu.c does on a 64-bit kernel."""
    line = (
        f"{mapping.start:08x}-{mapping.stop:08x} {mapping.permissions}"
        f" {mapping.offset_bytes:08x} {mapping.device} {mapping.inode} "
    )
    return (f"{line:<73}{mapping.path}" if mapping.path else line).encode()


def variant_maps(name: str) -> list[Mapping]:
    return parse_maps((VARIANTS / name).read_bytes())


def variant_smaps(name: str) -> list[MappingFigures]:
    return parse_smaps((VARIANTS / name).read_bytes())


def test_addresses_of_32_bits() -> None:
    found = variant_maps("maps-2.6-i386")
    assert len(found) == 7
    assert found[4] == Mapping(
        0x4001E000, 0x4001F000, "rw-s", 0xFE000000, "00:0b", 2147483649, "/dev/gpmctl"
    )
    assert (found[5].offset_bytes, found[5].path) == (0xFFFFF000, "[stack]")


def test_names_are_kept_verbatim() -> None:
    assert [mapping.path for mapping in variant_maps("maps-names")] == [
        "[anon:malloc arena: 1]",
        "[anon_shmem:my shm]",
        "/SYSV00000000 (deleted)",
        "anon_inode:[io_uring]",
        "anon_inode:[perf_event]",
        "socket:[99001]",
        "/anon_hugepage (deleted)",
        "/srv/a b (deleted) (deleted)",
        "[stack:1001]",
    ]


def test_large_offsets_devices_and_inodes() -> None:
    mapping = variant_maps("maps-names")[7]
    assert (mapping.offset_bytes, mapping.device) == (0x7FFFFFFFFF000, "103:1fffe")
    assert mapping.inode == 2**64 - 1


def test_figures_that_a_kernel_does_not_give_are_absent() -> None:
    bash, heap = variant_smaps("smaps-2.6.32")
    assert (bash.size_bytes["Swap"], heap.size_bytes["Private_Dirty"]) == (8192, 4096)
    assert "SwapPss" not in bash.size_bytes
    assert bash.vm_flags == heap.vm_flags == frozenset()


def test_pages_of_64_kib() -> None:
    (heap,) = variant_smaps("smaps-5.10-arm64-64k")
    assert heap.size_bytes["KernelPageSize"] == 65536
    assert heap.size_bytes["Swap"] == 2 * 65536
    assert "THPeligible" not in heap.size_bytes


def test_figures_without_a_unit_are_no_sizes() -> None:
    (shm,) = variant_smaps("smaps-6.12-pkeys")
    assert shm.mapping.path == "/dev/shm/x: y"
    assert "ProtectionKey" not in shm.size_bytes
    assert shm.size_bytes["ShmemPmdMapped"] == 2 << 20
    assert shm.vm_flags == {"rd", "wr", "sh", "mr", "mw", "me", "ms", "sd"}
