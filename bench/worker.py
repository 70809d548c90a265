"""
The library as a program that uses it: one line on stdin, one scan, one line of JSON.

    worker.py PID [START STOP]      map_process of the PID
    worker.py --cli ARGUMENT...     the command line, once, its output thrown away

It runs in a process of its own, so that its peak memory is that of a user's program:
interpreter, numpy and memlens included.
"""

import json
import os
import sys
import time
from pathlib import Path

import memlens


def read_peak_bytes() -> int:
    """Return VmHWM: unlike getrusage, it starts anew at exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def scan(pid: int, start: int | None, stop: int | None) -> dict[str, object]:
    """Map the process once; the counts are part of what is timed."""
    began = time.perf_counter_ns()
    result = memlens.map_process(pid, start=start, stop=stop)
    counts = [mapping.counts() for mapping in result.mappings]
    took = time.perf_counter_ns() - began
    return {
        "ns": took,
        "peak_bytes": read_peak_bytes(),
        "longest_read_s": result.cost.longest_read_s,
        "read_bytes": result.cost.read_bytes,
        "is_complete": result.is_complete,
        "mappings": [
            [mapping.start, mapping.stop, [int(n) for n in count]]
            for mapping, count in zip(result.mappings, counts, strict=True)
        ],
    }


def answer_lines(arguments: list[str]) -> None:
    """Scan for every line on stdin."""
    pid = int(arguments[0])
    start, stop = (int(arguments[1]), int(arguments[2])) if len(arguments) > 1 else (None, None)
    labels = [kind.label for kind in memlens.PageClass]
    print(json.dumps({"labels": labels, "peak_bytes": read_peak_bytes()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(scan(pid, start, stop)), flush=True)


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
        answer_lines(sys.argv[1:])
