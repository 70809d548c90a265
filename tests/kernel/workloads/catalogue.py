"""
The catalogue: every kind of memory there is, built and proven.

Each entry is a context manager that builds memory in a process of its own, proves its
state by reads that share no code with memlens, and yields what must be seen of it.
"""

from collections.abc import Iterator

from tests.kernel.workloads import (
    anonymous,
    files,
    hugetlb,
    overlays,
    rare_calls,
    shmem,
    shmem_changed,
    shmem_huge,
    special,
    userfault,
)
from tests.kernel.workloads.base import Entry

MODULES = (
    *(anonymous, userfault, shmem, shmem_changed, shmem_huge),
    *(files, overlays, hugetlb, special, rare_calls),
)
CATALOGUE: tuple[Entry, ...] = tuple(entry for module in MODULES for entry in module.ENTRIES)


def cases() -> Iterator[tuple[Entry, str]]:
    """Yield every entry with every kind of swap it is to be built on."""
    for entry in CATALOGUE:
        for kind in entry.swap:
            yield entry, kind
