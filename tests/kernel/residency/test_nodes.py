"""Pages by NUMA node: a sysfs of our own says that this machine has two."""

from pathlib import Path

import numpy as np

from memlens import PageClass, map_process
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Host
from memlens.kernel.zoneinfo import count_frames, read_node_ranges
from memlens.residency.capture import count_nodes
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable
from tests.kernel.support.driver import HUGE, MADV_HUGEPAGE, PAGE, target
from tests.kernel.support.oracle import PRESENT, read_pagemap

BLOCK = 16 << 20
PFN = np.uint64((1 << 55) - 1)


def two_nodes(root: Path) -> str:
    """Give every second block of the memory of this machine to node 2, the others to node 0."""
    system = root / "devices" / "system"
    (system / "memory").mkdir(parents=True)
    (system / "memory" / "block_size_bytes").write_text(f"{BLOCK:x}\n")
    for block in range(count_frames(Host()) * PAGE // BLOCK + 1):
        (system / "node" / f"node{block % 2 * 2}" / f"memory{block}").mkdir(parents=True)
    return str(root)


def test_present_pages_by_node(machine: None, tmp_path: Path) -> None:
    nodes = read_node_ranges(Host(sys=two_nodes(tmp_path)))
    with target() as driven:
        start = driven.mmap(9000)
        driven.poke(start, range(0, 9000, 7))
        driven.peek(start, range(1, 9000, 70))
        huge = driven.mmap(HUGE // PAGE, align=HUGE)
        driven.libc("madvise", huge, HUGE, MADV_HUGEPAGE)
        driven.poke(huge, [0])
        found = map_process(driven.pid)
        with (
            ProcessDir(driven.pid, Host()) as process,
            PageTable.open(process, Machine()) as table,
        ):
            by_start = {
                row.start: count_nodes(table, row.start_page, row.runs, nodes)
                for row in found.each
            }
        for mapping in found.each:
            wanted = expected(driven.pid, mapping.start, mapping.classes())
            assert by_start[mapping.start] == wanted
        assert sum(by_start[start].values()) == 9000 // 7 + 1


def expected(pid: int, start: int, classes: np.ndarray) -> dict[int, int]:
    """Return the same from one read of the words."""
    if start >> 63:
        return {}
    words = read_pagemap(pid, start, len(classes))[classes == PageClass.PRESENT]
    assert (words & np.uint64(PRESENT)).all()
    blocks = (words & PFN) * np.uint64(PAGE) // np.uint64(BLOCK)
    node, pages = np.unique(blocks % np.uint64(2) * np.uint64(2), return_counts=True)
    return dict(zip(node.tolist(), pages.tolist(), strict=True))


def test_a_machine_of_one_node_has_nothing_to_tell(machine: None) -> None:
    with target() as driven:
        found = map_process(driven.pid)
    is_one = not read_node_ranges(Host())
    assert (found.node_pages() == {}) == is_one
