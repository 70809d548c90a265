"""
Whether the swap cache is empty: then no page is on swap and in RAM at once.

/proc/sys/vm/stat_refresh (Documentation/admin-guide/sysctl/vm.rst) and ``nr_swapcached``
of /proc/vmstat.  /proc/meminfo says the same, but in containers it may be made up (lxcfs).
"""

from memlens.kernel.procfs import read_file


def is_swap_cache_empty(proc: str = "/proc") -> bool:
    """
    Return whether no page at all was in the swap cache at one moment of the call.

    Counters stay with their CPU up to a second before they are added to the total; the
    refresh adds them now.  It needs root: False also means that this is not known.
    """
    try:
        read_file(f"{proc}/sys/vm/stat_refresh")
        figures = read_file(f"{proc}/vmstat")
    except OSError:
        return False
    return b"\nnr_swapcached 0\n" in figures
