"""
memory.stat of a memory cgroup.

Documentation/admin-guide/cgroup-v1/memory.rst (sums with those below begin with
``total_``) and cgroup-v2.rst (every figure is with those below).
"""

from memlens.kernel.procfs import read_file


def read_memory_stat(directory: str) -> dict[str, int]:
    """Return the figures of a cgroup by name, empty if there are none."""
    try:
        return parse_memory_stat(read_file(f"{directory}/memory.stat"))
    except OSError:
        return {}


def parse_memory_stat(raw: bytes) -> dict[str, int]:
    """
    Return the figures by name.

    >>> parse_memory_stat(b"anon 4096\\nfile 8192\\n")
    {'anon': 4096, 'file': 8192}
    """
    rows = (line.split() for line in raw.decode("ascii", "replace").split("\n"))
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
