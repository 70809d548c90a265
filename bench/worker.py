"""
The library as a program that uses it: one line on stdin, one scan, one line of JSON.

    worker.py map_process PID,PID... [START STOP]   of each; pages of each class
    worker.py map_huge PID,PID...                   of all; pages of Rss
    worker.py --cli ARGUMENT...     the command line, once, its output thrown away

A line holds two addresses: the answer's pages are of the mappings between them.

It runs in a process of its own, so that its peak memory is that of a user's program:
interpreter, numpy and memlens included.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import memlens


def read_peak_bytes() -> int:
    """Return VmHWM: unlike getrusage, it starts anew at exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def map_all(pids: list[int], limits: list[int]) -> "list[memlens.ProcessMap]":
    """Map the processes, and count the pages of every mapping."""
    if len(pids) == 1:
        start, stop = limits or (None, None)
        results = [memlens.map_process(pids[0], start=start, stop=stop)]
    else:
        found = memlens.map_processes(pids)
        results = [result for result in found if isinstance(result, memlens.ProcessMap)]
    for result in results:
        for kind in memlens.PageClass:
            result.mappings.column(f"{kind.label}_pages").tolist()
    return results


def sum_classes(
    results: "Iterable[memlens.ProcessMap]", start: int, stop: int
) -> dict[str, int]:
    """Return the pages of each class that there are."""
    total = [0] * len(memlens.PageClass)
    for result in results:
        size = result.page_size_bytes
        for mapping in result.mappings:
            if mapping.start_page * size >= start and mapping.stop_page * size <= stop:
                total = [a + int(b) for a, b in zip(total, mapping.counts(), strict=True)]
    return {kind.label: total[kind] for kind in memlens.PageClass if total[kind]}


def map_huge(pids: list[int], _: list[int]) -> "memlens.HugeReport":
    """Tell how huge pages are mapped in the processes."""
    return memlens.map_huge(pids)


def sum_rss(report: "memlens.HugeReport", start: int, stop: int) -> dict[str, int]:
    """Return the pages of Rss in a range: all that are told, less what smaps has elsewhere."""
    pages = 0
    for process in report.processes:
        pages += process.anonymous_pages + process.file_pages
        pages -= read_rss_outside(process.pid, start, stop) // report.page_size_bytes
    return {"rss": pages}


def read_rss_outside(pid: int, start: int, stop: int) -> int:
    """Return the bytes of Rss of mappings that are not in a range."""
    size_bytes, is_inside = 0, False
    with open(f"/proc/{pid}/smaps", "rb") as file:
        for line in file:
            if line[:1] in b"0123456789abcdef":
                low, high = (int(text, 16) for text in line.split(None, 1)[0].split(b"-"))
                is_inside = low >= start and high <= stop
            elif not is_inside and line.startswith(b"Rss:"):
                size_bytes += int(line.split()[1]) << 10
    return size_bytes


CALLS: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, int]]]] = {
    "map_process": (map_all, sum_classes),
    "map_huge": (map_huge, sum_rss),
}


def answer_lines(name: str, pids: str, *limits: str) -> None:
    """Scan for every line on stdin."""
    call, summary = CALLS[name]
    # Imports what it needs, which is no part of the first scan.
    getattr(memlens, name)
    print(json.dumps({"peak_bytes": read_peak_bytes()}), flush=True)
    for line in sys.stdin:
        began, cpu_began = time.perf_counter_ns(), time.process_time_ns()
        result = call([int(pid) for pid in pids.split(",")], [int(limit) for limit in limits])
        answer: dict[str, object] = {
            "ns": time.perf_counter_ns() - began,
            "cpu_ns": time.process_time_ns() - cpu_began,
            "peak_bytes": read_peak_bytes(),
        }
        answer["pages"] = summary(result, *map(int, line.split()))
        if name == "map_process":
            answer["longest_read_s"] = max(one.cost.longest_read_s for one in result)
        print(json.dumps(answer), flush=True)
        # Before the next scan: its peak is that of one answer.
        del result


def run_command_line(arguments: list[str]) -> None:
    """Run the command line, then say what it cost."""
    from memlens.__main__ import main

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["memlens", *arguments]
    began = time.perf_counter_ns()
    try:
        main()
        code: object = 0
    except SystemExit as stop:
        code = stop.code or 0
    took = time.perf_counter_ns() - began
    print(json.dumps({"ns": took, "code": code, "peak_bytes": read_peak_bytes()}), file=answers)
    answers.close()


if __name__ == "__main__":
    if sys.argv[1] == "--cli":
        run_command_line(sys.argv[2:])
    else:
        answer_lines(*sys.argv[1:])
