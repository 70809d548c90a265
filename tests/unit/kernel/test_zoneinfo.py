"""Memory blocks of sysfs -> frames of NUMA nodes; zones -> the end of memory."""

from pathlib import Path

import pytest

from memlens.kernel.procfs import Host
from memlens.kernel.zoneinfo import (
    NodeRange,
    count_frames,
    parse_zone_stop,
    read_node_ranges,
    read_nodes,
)

BLOCK = 128 << 20
FRAMES = BLOCK // 4096


def sysfs(root: Path, nodes: dict[int, list[int]]) -> str:
    system = root / "devices" / "system"
    (system / "memory").mkdir(parents=True)
    (system / "memory" / "block_size_bytes").write_text(f"{BLOCK:x}\n")
    for node, blocks in nodes.items():
        (system / "node" / f"node{node}" / "power").mkdir(parents=True)
        for block in blocks:
            (system / "node" / f"node{node}" / f"memory{block}").mkdir()
    (system / "node" / "has_cpu").write_text("0-1\n")
    return str(root)


def test_blocks_of_a_node_join_and_holes_stay_open(tmp_path: Path) -> None:
    sys = sysfs(tmp_path, {0: [0, 1, 2, 32], 1: [33, 34, 10]})
    assert read_node_ranges(Host(sys=sys, page_size_bytes=4096)) == [
        NodeRange(0, 0, 3 * FRAMES),
        NodeRange(1, 10 * FRAMES, 11 * FRAMES),
        NodeRange(0, 32 * FRAMES, 33 * FRAMES),
        NodeRange(1, 33 * FRAMES, 35 * FRAMES),
    ]


def test_the_page_size_counts(tmp_path: Path) -> None:
    sys = sysfs(tmp_path, {0: [1], 1: [2]})
    assert read_nodes(Host(sys=sys, page_size_bytes=65536))[1] == NodeRange(1, 4096, 6144)


def test_a_block_of_two_nodes_counts_for_the_first(tmp_path: Path) -> None:
    sys = sysfs(tmp_path, {0: [0, 1], 1: [1, 2]})
    ranges = read_node_ranges(Host(sys=sys, page_size_bytes=4096))
    assert ranges == [NodeRange(0, 0, 2 * FRAMES), NodeRange(1, 2 * FRAMES, 3 * FRAMES)]


@pytest.mark.parametrize("nodes", [{0: [0, 1]}, {0: [0], 1: []}])
def test_one_node_with_memory_is_nothing_to_tell(
    tmp_path: Path, nodes: dict[int, list[int]]
) -> None:
    assert read_node_ranges(Host(sys=sysfs(tmp_path, nodes), page_size_bytes=4096)) == []


def test_without_memory_blocks_nothing_is_known(tmp_path: Path) -> None:
    assert read_node_ranges(Host(sys=str(tmp_path), page_size_bytes=4096)) == []
    (tmp_path / "node" / "node0").mkdir(parents=True)
    (tmp_path / "node" / "node1").mkdir()
    assert read_node_ranges(Host(sys=str(tmp_path), page_size_bytes=4096)) == []


def test_memory_ends_with_the_last_zone_that_spans_any() -> None:
    zones = b"""Node 0, zone      DMA
        spanned  4095
        present  3999
  start_pfn:           1
Node 0, zone   Normal
        spanned  100
  start_pfn:           5000
Node 0, zone  Movable
        spanned  0
  start_pfn:           9000
"""
    assert parse_zone_stop(zones) == 5100


def test_an_unreadable_zoneinfo_is_no_number(tmp_path: Path) -> None:
    assert count_frames(Host(str(tmp_path))) == 0
