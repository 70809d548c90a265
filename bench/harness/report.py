"""The rows as a table for the terminal and as a page for the documentation."""

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.harness.rows import Section

HEADINGS = ("what", "measured", "limit", "reached", "how")
INTRODUCTION = """\
# What a scan costs

Written by `make bench`; do not edit. Every ratio was measured in one run, in turns: ours,
theirs, ours, theirs; it is the median over the turns of the ratio of two neighbours, after
one turn that does not count. "How" shows both medians, our best time in parts of theirs, and
the ratio of CPU time of all threads, which a busy machine disturbs less.

- **library**: `memlens.map_process(pid)` and the counts of every mapping, timed inside a
  process of its own. Its answer is checked against what the target made: a wrong answer
  fails the run.
- **floor**: a C program (`bench/floor.c`) that makes the kernel reads which the answer needs,
  in pieces of 64 KiB on one thread, and decodes nothing. For shared memory: pagemap, then
  SEEK_DATA/SEEK_HOLE and mincore of the object; a floor of pagemap makes only the first.
- **reading smaps**: `/proc/PID/smaps` of the same process, read by the same C program and
  thrown away. It gives totals per mapping, not pages.
- **page-types**: the kernel's own tool, from its sources; it also reads kpageflags.
- **peak memory**: VmHWM of a whole process, interpreter and numpy included.
- The targets' memory is in base pages, without swap unless a row says so; `bench/targets.c`
  makes it.
"""


UNMEASURED = "Not measured: the run was ended before."


def render_text(sections: Sequence[Section]) -> str:
    """Return all rows for a terminal, columns aligned."""
    rows = [row.cells() for section in sections for row in section.rows]
    widths = [max(len(row[i]) for row in [HEADINGS, *rows]) for i in range(4)]
    lines: list[str] = []
    for section in sections:
        lines += ["", section.title, *([] if section.rows else [f"  {UNMEASURED}"])]
        for cells in (row.cells() for row in section.rows):
            shown = [cell.replace("**", "") for cell in cells]
            columns = [shown[0].ljust(widths[0])]
            columns += [
                cell.rjust(width) for cell, width in zip(shown[1:4], widths[1:], strict=True)
            ]
            lines.append(f"  {'  '.join(columns)}  {shown[4]}".rstrip())
    return "\n".join(lines[1:])


def render_page(machine: str, sections: Sequence[Section]) -> str:
    """Return the page for the documentation."""
    return "\n".join([INTRODUCTION, machine, *_render_tables(sections)]) + "\n"


def describe_machine() -> str:
    """Return one line about the machine, with nothing that names it."""
    release = ".".join(platform.release().split(".")[:2])
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"Machine: Linux {release}, {platform.machine()}, {os.cpu_count()} CPUs (virtual or"
        f" not), {memory_gib:.0f} GiB; Python {platform.python_version()},"
        f" numpy {np.__version__}; load average before the run"
        f" {os.getloadavg()[0]:.1f}."
    )


def write_page(path: Path, machine: str, sections: Sequence[Section]) -> None:
    """Write the page for the documentation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(machine, sections))


def _render_tables(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield f"\n## {section.title[0].upper()}{section.title[1:]}\n"
        if not section.rows:
            yield UNMEASURED
            continue
        yield f"| {' | '.join(HEADINGS)} |"
        yield "|---|--:|--:|---|---|"
        for row in section.rows:
            yield f"| {' | '.join(row.cells())} |"
