"""
The page-cache walk at work: one line on stdin, one walk of a mapping, one line of JSON.

    walkworker.py PID ADDRESS
"""

import json
import sys
import time

from memlens.kernel.cachewalk import walker


def answer_lines(pid: int, address: int) -> None:
    """Walk for every line on stdin."""
    loaded = walker()
    print("{}", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter_ns()
        records = loaded.walk_vma(pid, address)
        took = time.perf_counter_ns() - began
        swapped = int(records.pages[records.is_swap].sum())
        print(json.dumps({"ns": took, "pages": swapped, "records": len(records)}), flush=True)


if __name__ == "__main__":
    answer_lines(int(sys.argv[1]), int(sys.argv[2]))
