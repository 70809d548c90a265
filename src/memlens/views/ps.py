"""What ``memlens ps`` shows: processes, or their groups."""

from collections.abc import Iterator

from memlens.sharing.records import ProcessList
from memlens.views.text import Line, TableOptions, render_foot, render_top

_PROCESS_COLUMNS = (
    "pid",
    "user",
    "rss_pages",
    "pss_pages",
    "uss_pages",
    "swap_entries_pages",
    "swap_share_bytes",
    "freed_on_exit_pages",
    "shared_memory_pages",
    "cgroup",
    "name",
)
_GROUP_COLUMNS = (
    "processes",
    "distinct_rss_pages",
    "pss_pages",
    "uss_pages",
    "swap_slots_pages",
    "swap_share_bytes",
    "key",
)


def render(report: ProcessList, options: TableOptions) -> Iterator[Line]:
    """Yield the lines for a person: of groups if there are any, else of processes."""
    if "groups" in report.tables:
        yield from render_top(report.groups, report, options, names=_GROUP_COLUMNS)
    else:
        yield from render_top(report.processes, report, options, names=_PROCESS_COLUMNS)
    yield []
    yield from render_foot(report, options)
