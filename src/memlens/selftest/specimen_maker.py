"""
The process that makes specimens: reads commands, one a line, and answers in JSON.

    make [NUMBER ...]    make these specimens (all), and tell where they are
    prove                tell which are not now as they were made
"""

import json
import os
import sys

from memlens.kernel.procfs import read_file
from memlens.kernel.smaps import MappingFigures, parse_smaps
from memlens.kernel.syscalls import libc
from memlens.selftest.memory import MADV_DONTFORK, PAGE, Region
from memlens.selftest.recipes import RECIPES, Bench, CannotMake, Made

Row = dict[str, object]


def main(arguments: list[str]) -> None:
    """Serve until the input ends; arguments: the kind of swap, and why there is none."""
    _stay_on_one_cpu()
    maker = _Maker(Bench(*arguments))
    for line in sys.stdin:
        command, *words = line.split()
        if command == "make":
            answer: object = maker.make([int(word) for word in words])
        else:
            answer = maker.prove()
        print(json.dumps(answer), flush=True)


def _stay_on_one_cpu() -> None:
    """A page waits in a list of the CPU that wrote it, where pageout does not find it."""
    try:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    except OSError:
        pass


class _Maker:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.made: dict[int, Made] = {}

    def make(self, numbers: list[int]) -> list[Row]:
        rows = []
        for number in numbers or range(len(RECIPES)):
            self._throw_away(number)
            rows.append(self._make(number))
        return rows

    def prove(self) -> dict[int, str]:
        smaps = parse_smaps(read_file("/proc/self/smaps"))
        found = {}
        for number, made in self.made.items():
            text = _disproof(made, smaps)
            if text:
                found[number] = text
        return found

    def _make(self, number: int) -> Row:
        recipe = RECIPES[number]
        try:
            made = recipe.make(self.bench)
        except (CannotMake, OSError) as error:
            failure = str(error) if isinstance(error, CannotMake) else _text(error)
            return _row(number, Made(Region(0, 0), []), failure)
        if not made.is_forked and not made.is_borrowed:
            # A child of another specimen must not share this one.
            try:
                made.region.advise(MADV_DONTFORK)
            except OSError:
                pass
        self.made[number] = made
        return _row(number, made)

    def _throw_away(self, number: int) -> None:
        old = self.made.pop(number, None)
        if old is not None and not old.is_borrowed:
            libc.munmap(old.region.address, old.region.size_bytes)


def _text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _row(number: int, made: Made, failure: str = "") -> Row:
    return {
        "number": number,
        "family": RECIPES[number].family,
        "how": RECIPES[number].how,
        "address": made.region.address,
        "pages": made.region.pages,
        "expected": made.expected,
        "failure": failure,
    }


def _disproof(made: Made, smaps: list[MappingFigures]) -> str:
    """Return the figure that is not what it must be, "" if all are."""
    region = made.region
    stop = region.address + region.size_bytes
    rows = [row for row in smaps if region.address <= row.mapping.start < stop]
    for name, wanted in made.figures.items():
        if name == "resident":
            found = region.resident()
        else:
            found = sum(row.size_bytes.get(name, 0) for row in rows) // PAGE
        if found != wanted:
            return f"{name} of its mapping is {found} pages instead of {wanted}"
    return ""
