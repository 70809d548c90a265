"""A machine of 500 processes: the ledger, the inventory and the list, beside their peers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import memlens
from bench.harness.context import GIB, MIB, WORKER, Context, timed_command
from bench.harness.lines import BenchError, LineProcess
from bench.harness.rows import Row
from bench.harness.swap import zram_swap
from bench.scenarios.startup import memlens as command

TITLE = "500 processes, 100 of them map an object of 1 GiB, a quarter of it on swap"
BENCH = Path(__file__).parents[1]
BUILD = BENCH / "build"
PAGE = os.sysconf("SC_PAGE_SIZE")
PROCESSES, MAPPERS, FULL = 500, 100, 20
PEAK_MIB = 300
Peer = list[str] | str


def run(ctx: Context) -> Iterator[Row]:
    """Yield each command against reading smaps, its peak memory, and the peers."""
    size = ctx.scale(GIB)
    crowd = [sys.executable, str(BENCH / "crowd.py")]
    counts = [str(ctx.scale(number)) for number in (PROCESSES, MAPPERS)]
    # 20 times three quarters of the object, and 80 times a sixteenth of that: 18.75 GiB.
    with zram_swap(size), LineProcess([*crowd, *counts, str(size), str(ctx.scale(FULL))]):
        prove(ctx, size)
        for name, limit in (("swap", 1.0), ("shm", 0.5), ("ps", None)):
            pairs = ctx.compare(timed_command(command(name)), read_every_smaps)
            figure = f"memlens {name} / reading every smaps"
            yield Row(figure, pairs.ratio, "x", limit, pairs.note)
        for call in (memlens.read_swap_ledger, memlens.list_shared_memory):
            pairs = ctx.compare(timed_call(call), read_every_smaps)
            yield Row(
                f"{call.__name__}() / reading every smaps", pairs.ratio, "x", note=pairs.note
            )
        for name in ("swap", "shm", "ps"):
            yield peak(name)
        for name, ours in (("smem", "ps"), ("smem", "swap"), ("ps_mem", "ps")):
            yield beside(ctx, ours, name)


def prove(ctx: Context, size: int) -> None:
    """Raise BenchError unless the ledger tells what was made: a wrong answer has no speed."""
    ledger = json.loads(subprocess.run(command("swap", "--json"), capture_output=True).stdout)
    objects = {item["name"]: item for item in ledger["objects"]}
    crowd = objects.get("memfd:crowd", {"swapped_pages": 0, "holders": []})
    if crowd["swapped_pages"] != size // 4 // PAGE:
        raise BenchError(f"{crowd['swapped_pages']} pages of the object on swap")
    if len(crowd["holders"]) != ctx.scale(MAPPERS) + 1:
        raise BenchError(f"{len(crowd['holders'])} holders of the object")
    if abs(ledger["remainder_pages"]) > ledger["used_pages"] // 100:
        raise BenchError(f"a remainder of {ledger['remainder_pages']} pages")


def read_every_smaps() -> int:
    """Return how long it takes to read smaps of every process once, in ns."""
    began = time.perf_counter_ns()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
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
    return time.perf_counter_ns() - began


def timed_call(call: Callable[[], object]) -> Callable[[], int]:
    """Return a function that calls once and gives the time in ns."""

    def once() -> int:
        began = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - began

    return once


def peak(name: str) -> Row:
    """Return the peak memory of a command."""
    worker = [sys.executable, str(WORKER), "--cli", name]
    done = subprocess.run(worker, check=True, stdout=subprocess.PIPE)
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer["code"] != 0:
        raise BenchError(f"memlens {name}: exit code {answer['code']}")
    mebibytes = answer["peak_bytes"] / MIB
    return Row(f"memlens {name}: peak memory", mebibytes, "MiB", PEAK_MIB)


def beside(ctx: Context, ours: str, name: str) -> Row:
    """Return our time in parts of a peer's."""
    peer = PEERS[name]()
    figure = f"memlens {ours} / {name}"
    if isinstance(peer, str):
        return Row(figure, None, "x", note=peer)
    pairs = ctx.compare(timed_command(command(ours)), timed_command(peer))
    return Row(figure, pairs.ratio, "x", note=pairs.note)


def find_smem() -> Peer:
    """Return smem of Debian's package, unpacked: it is one script."""
    script = BUILD / "smem" / "usr" / "bin" / "smem"
    if not script.exists():
        download = BUILD / "smem"
        unpack = "apt-get download smem && dpkg-deb -x smem_*.deb . && rm smem_*.deb"
        failure = _try(["sh", "-c", unpack], download)
        if failure:
            return failure
    return [sys.executable, str(script)]


def find_ps_mem() -> Peer:
    """Return ps_mem from the package index."""
    script = BUILD / "ps_mem" / "ps_mem.py"
    if not script.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        failure = _try([*install, ".", "ps_mem"], BUILD / "ps_mem")
        if failure:
            return failure
    return [sys.executable, str(script)]


def _try(command: list[str], directory: Path) -> str:
    """Run a command in a new directory; return why it failed, "" if it did not."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


PEERS: dict[str, Callable[[], Peer]] = {"smem": find_smem, "ps_mem": find_ps_mem}
