"""Frames by the cgroup that is charged, and by kind."""

import numpy as np

from memlens.pages.flags import mask_of
from memlens.physical.frames import Charged, classify_kinds, count_by_owner
from memlens.physical.records import KINDS

KIND_FLAGS = {
    "anonymous": mask_of("ANON", "SWAPBACKED", "MMAP", "LRU"),
    "shmem": mask_of("SWAPBACKED", "DIRTY"),
    "file": mask_of("UPTODATE"),
    "hugetlb": mask_of("HUGE", "MMAP"),
    "kernel": mask_of("PGTABLE", "MMAP"),
}


def test_kinds_of_charged_frames() -> None:
    codes = classify_kinds(np.array([KIND_FLAGS[kind] for kind in KINDS], np.uint64))
    assert codes.tolist() == [1, 2, 3, 4, 5]
    assert KINDS[int(classify_kinds(np.zeros(1, np.uint64))[0]) - 1] == "kernel"


def test_counts_by_owner() -> None:
    flags = np.array([KIND_FLAGS["file"], KIND_FLAGS["shmem"], KIND_FLAGS["file"]], np.uint64)
    piece = Charged(np.array([3, 4, 9]), np.array([8, 7, 8], np.uint64), flags)
    inodes, counts = count_by_owner(piece)
    assert inodes.tolist() == [7, 8]
    assert counts.tolist() == [[0, 1, 0, 0, 0], [0, 0, 2, 0, 0]]
