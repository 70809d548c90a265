"""
Memory of every kind, made on purpose by a child process, for the demo.

A specimen is a few pages of which it is known how they were made, hence what they
are.  What is known of them is proven by figures that the maker reads of itself (smaps,
mincore) right before and right after somebody else looks; ``SpecimenProcess`` starts
the maker (``memlens.selftest.specimen_maker``) and talks to it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from memlens.errors import MemlensError, Unsupported

_PROC = "/proc"
_START = """
import importlib, sys
sys.path.append(sys.argv[1])
importlib.import_module(sys.argv[2]).main(sys.argv[3:])
"""


@dataclass(frozen=True, slots=True)
class Specimen:
    """
    Pages of which it is known what they are.

    :param number: which one.
    :param family: the kind of memory, a heading.
    :param how: how it was made.
    :param address: of its first page.
    :param pages: how many.
    :param expected: labels of the classes that it may be in, ``(pages, labels)`` in order.
    :param failure: why it could not be made, "" if it was.
    """

    number: int
    family: str
    how: str
    address: int
    pages: int
    expected: tuple[tuple[int, tuple[str, ...]], ...]
    failure: str = ""


class SpecimenProcess:
    """
    The process that makes specimens, and ends when this does.

    :param swap: ``none``, ``zram`` (a page goes to swap and leaves nothing in RAM) or
        ``slow`` (it may leave a copy in the swap cache).
    :param why_no_swap: the reason, for what needs swap.
    :raises Unsupported: without /proc.
    """

    def __init__(self, swap: str, why_no_swap: str = "") -> None:
        # The maker proves what it made with files of its own.
        if not os.path.exists(f"{_PROC}/self/smaps"):
            raise Unsupported("not a proc file system, or one without smaps", path=_PROC)
        self._maker = start_helper("specimen_maker", swap, why_no_swap)

    def __enter__(self) -> "SpecimenProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return its PID."""
        return self._maker.pid

    def close(self) -> None:
        """End it, and wait until it has."""
        stop_helper(self._maker)

    def make(self, numbers: Iterable[int] = ()) -> list[Specimen]:
        """
        Make specimens, or make them anew.

        :param numbers: which ones; none for all there are.
        :raises MemlensError: if the maker fails as a whole.
        """
        rows = ask_helper(self._maker, "make", *map(str, numbers))
        return [_specimen(row) for row in rows]

    def disproofs(self) -> dict[int, str]:
        """Return what is not as it was made right now, by number, with the figure."""
        found = ask_helper(self._maker, "prove")
        return {int(number): text for number, text in found.items()}


def _specimen(row: dict[str, Any]) -> Specimen:
    expected = tuple((pages, tuple(labels)) for pages, labels in row.pop("expected"))
    return Specimen(expected=expected, **row)


def start_helper(module: str, *arguments: str) -> "subprocess.Popen[str]":
    """
    Start a module of this package as a process that ends when its input does.

    In a session of its own: Ctrl-C is for us, and what it has to undo it undoes even if
    we are killed.
    """
    # Last in the path: beside an installed package lie others, some named as Python's own.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    name = f"memlens.selftest.{module}"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, root, name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ask_helper(helper: "subprocess.Popen[str]", *words: str) -> Any:
    """
    Send one line to a helper and return its answer.

    :raises MemlensError: if it gives none.
    """
    line = ""
    if helper.stdin is not None and helper.stdout is not None:
        try:
            helper.stdin.write(" ".join(words) + "\n")
            helper.stdin.flush()
            line = helper.stdout.readline()
        except BrokenPipeError:
            pass
    if not line:
        raise MemlensError(f"the helper process ended early (exit code {helper.wait()})")
    answer = json.loads(line)
    if isinstance(answer, dict) and "error" in answer:
        raise MemlensError(str(answer["error"]))
    return answer


def stop_helper(helper: "subprocess.Popen[str]") -> str:
    """Close the input of a helper, wait until it has ended, and return its last words."""
    if helper.stdin is not None:
        try:
            helper.stdin.close()
        except BrokenPipeError:
            pass
    words = helper.stdout.read() if helper.stdout is not None else ""
    helper.wait()
    if helper.stdout is not None:
        helper.stdout.close()
    return words.strip()
