"""A machine of 500 processes: the ledger, the inventory and the list, beside their peers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memlens
from bench.harness.context import GIB, MIB, WORKER, Context, find_memlens
from bench.harness.lines import BenchError, LineProcess
from bench.harness.peers import beside
from bench.harness.rows import Row
from bench.harness.spent import of_call, of_command
from bench.harness.swap import zram_swap

TITLE = "500 processes, 100 of them map an object of 1 GiB, a quarter of it on swap"
BENCH = Path(__file__).parents[1]
PAGE = os.sysconf("SC_PAGE_SIZE")
PROCESSES, MAPPERS, FULL = 500, 100, 20
PEAK_MIB = 300


def run(ctx: Context) -> Iterator[Row]:
    """Yield each command against reading smaps, its peak memory, and the peers."""
    size = ctx.scale(GIB)
    crowd = [sys.executable, str(BENCH / "crowd.py")]
    counts = [str(ctx.scale(number)) for number in (PROCESSES, MAPPERS)]
    # 20 times three quarters of the object, and 80 times a sixteenth of that: 18.75 GiB.
    with zram_swap(size), LineProcess([*crowd, *counts, str(size), str(ctx.scale(FULL))]):
        prove(ctx, size)
        smaps = of_call(read_every_smaps)
        for name, limit in (("swap", 1.0), ("shm", 0.5), ("ps", 1.0)):
            pairs = ctx.compare(of_command(find_memlens(name)), smaps)
            figure = f"memlens {name} / reading every smaps"
            yield Row(figure, pairs.ratio, "x", limit, pairs.note)
        for call in (memlens.read_swap_ledger, memlens.list_shared_memory):
            pairs = ctx.compare(of_call(call), smaps)
            figure = f"{call.__name__}() / reading every smaps"
            yield Row(figure, pairs.ratio, "x", note=pairs.note)
        for name in ("swap", "shm", "ps"):
            yield peak(name)
        yield beside(ctx, "ps", "ps_mem")
        if ctx.is_long:
            yield beside(ctx, "ps", "smem")
            yield beside(ctx, "swap", "smem")


def prove(ctx: Context, size: int) -> None:
    """Raise BenchError unless the ledger tells what was made: a wrong answer has no speed."""
    ledger = json.loads(
        subprocess.run(find_memlens("swap", "--json"), capture_output=True).stdout
    )
    tables, swap = ledger["tables"], ledger["sums"]["swap"]
    objects = {item["name"]: item for item in tables["objects"]}
    crowd = objects.get("memfd:crowd", {"swapped_pages": 0, "object": None})
    if crowd["swapped_pages"] != size // 4 // PAGE:
        raise BenchError(f"{crowd['swapped_pages']} pages of the object on swap")
    holders = sum(row["object"] == crowd["object"] for row in tables["holders"])
    if holders != ctx.scale(MAPPERS) + 1:
        raise BenchError(f"{holders} holders of the object")
    if abs(swap["remainder_pages"]) > swap["total_pages"] // 100:
        raise BenchError(f"a remainder of {swap['remainder_pages']} pages")


def read_every_smaps() -> None:
    """Read smaps of every process once."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fd = os.open(f"/proc/{name}/smaps", os.O_RDONLY)
        except OSError:
            continue
        try:
            while os.read(fd, 1 << 18):
                pass
        except OSError:
            pass
        finally:
            os.close(fd)


def peak(name: str) -> Row:
    """Return the peak memory of a command."""
    worker = [sys.executable, str(WORKER), "--cli", name]
    done = subprocess.run(worker, check=True, stdout=subprocess.PIPE)
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer["code"] != 0:
        raise BenchError(f"memlens {name}: exit code {answer['code']}")
    mebibytes = answer["peak_bytes"] / MIB
    return Row(f"memlens {name}: peak memory", mebibytes, "MiB", PEAK_MIB)
