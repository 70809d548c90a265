"""
Where physical memory is: /proc/zoneinfo, and the NUMA nodes in sysfs.

Documentation/filesystems/proc.rst, Documentation/ABI/stable/sysfs-devices-node and
sysfs-devices-memory.
"""

import os
import re
from dataclasses import dataclass

from memlens.kernel.procfs import Host, decode_bytes, read_file


@dataclass(frozen=True, slots=True)
class NodeRange:
    """Frames of a NUMA node: PFNs of ``[first, stop)``."""

    node: int
    first: int
    stop: int


def parse_zone_stop(raw: bytes) -> int:
    r"""
    Return the PFN after the last of any zone, from /proc/zoneinfo; 0 if it does not say.

    >>> parse_zone_stop(b"Node 0, zone DMA\n  spanned  4095\n  start_pfn:           1\n")
    4096
    """
    stop = spanned = 0
    for line in decode_bytes(raw).split("\n"):
        fields = line.split()
        if len(fields) == 2 and fields[0] == "spanned":
            spanned = int(fields[1])
        elif len(fields) == 2 and fields[0] == "start_pfn:" and spanned:
            stop = max(stop, int(fields[1]) + spanned)
    return stop


def count_frames(host: Host) -> int:
    """Return the number of page frames up to the end of memory; 0 if it is not known."""
    try:
        return parse_zone_stop(read_file(f"{host.root}/zoneinfo"))
    except OSError:
        return 0


def read_nodes(host: Host) -> list[NodeRange]:
    """
    Return the frames of each NUMA node, in order, from the memory blocks of sysfs.

    A block whose pages belong to two nodes counts for the first of them.  Empty where the
    kernel has no memory blocks (CONFIG_MEMORY_HOTPLUG).
    """
    try:
        block_bytes = int(read_file(f"{host.sys}/devices/system/memory/block_size_bytes"), 16)
        names = sorted(os.listdir(f"{host.sys}/devices/system/node"))
    except (OSError, ValueError):
        return []
    frames = block_bytes // host.page_size_bytes
    blocks: dict[int, int] = {}
    for name in names:
        match = re.fullmatch(r"node(\d+)", name)
        if match is None:
            continue
        for block in os.listdir(f"{host.sys}/devices/system/node/{name}"):
            if found := re.fullmatch(r"memory(\d+)", block):
                blocks.setdefault(int(found[1]), int(match[1]))
    return _join_blocks(blocks, frames)


def read_node_ranges(host: Host) -> list[NodeRange]:
    """Return ``read_nodes`` where there is more than one node, else nothing."""
    try:
        names = os.listdir(f"{host.sys}/devices/system/node")
    except OSError:
        return []
    if sum(re.fullmatch(r"node\d+", name) is not None for name in names) < 2:
        return []
    ranges = read_nodes(host)
    return ranges if len({row.node for row in ranges}) > 1 else []


def _join_blocks(blocks: dict[int, int], frames: int) -> list[NodeRange]:
    ranges: list[NodeRange] = []
    for block, node in sorted(blocks.items()):
        first, stop = block * frames, (block + 1) * frames
        if ranges and ranges[-1].stop == first and ranges[-1].node == node:
            ranges[-1] = NodeRange(node, ranges[-1].first, stop)
        else:
            ranges.append(NodeRange(node, first, stop))
    return ranges


def read_pmd_order(host: Host) -> int:
    """
    Return how many pages one entry of the page middle directory maps, as a power of two.

    Documentation/admin-guide/mm/transhuge.rst.  Without transparent huge pages: what fits
    one page of entries.
    """
    try:
        size = int(read_file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"))
    except (OSError, ValueError):
        size = host.page_size_bytes * host.page_size_bytes // 8
    return (size // host.page_size_bytes).bit_length() - 1
