"""The kernel's own tools, built or taken from Debian's package of kernel sources."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.harness.build import build_page_types, find_thpmaps

BUILD = Path(__file__).parents[3] / "bench" / "build"


def page_types(*arguments: str) -> dict[int, int]:
    """Return what page-types counts: pages by word; skip where it cannot be built."""
    program = build_page_types(BUILD)
    if isinstance(program, str):
        pytest.skip(program)
    lines = _run([str(program), *arguments]).splitlines()
    rows = [line.split() for line in lines if line.startswith("0x")]
    return {int(row[0], 16): int(row[1]) for row in rows}


def thpmaps(*arguments: str) -> dict[str, int]:
    """Return the counters of ``thpmaps --rollup`` in KiB; skip where it cannot be had."""
    script = find_thpmaps(BUILD)
    if isinstance(script, str):
        pytest.skip(script)
    command = [sys.executable, str(script), "--rollup", "--inc-empty", *arguments]
    rows = [line.partition(":") for line in _run(command).splitlines()]
    return {name: int(rest.split()[0]) for name, _, rest in rows}


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
