"""
What an object was asked about one page, and what it answered, while it was asked.

The verdict of a page and the explanation of it come from the same calls: these
classes stand where ``Opener`` and ``Backing`` stand and write down each answer.
"""

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.backing import Backing
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import Opener

Answer = tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class Call:
    """
    One call and its answer.

    :param name: ``open``, ``size``, ``blocks``, ``seek``, ``cachestat`` or ``mincore``.
    :param first: first page of the object that it was about.
    :param pages: how many.
    :param answer: numbers whose meaning depends on the call, or the kernel's refusal.
    """

    name: str
    first: int
    pages: int
    answer: Answer


@dataclass(slots=True)
class Trace:
    """
    The calls of one look, in order; a call that repeats itself is kept once.

    :param calls: the calls.
    :param repeats: how often each was made.
    """

    calls: list[Call] = field(default_factory=list)
    repeats: dict[Call, int] = field(default_factory=dict)

    def add(self, name: str, first: int, pages: int, answer: Answer) -> None:
        """Write a call down."""
        call = Call(name, first, pages, answer)
        if call not in self.repeats:
            self.calls.append(call)
        self.repeats[call] = self.repeats.get(call, 0) + 1

    def of_page(self, page: int) -> list[Call]:
        """
        Return the calls about one page of the object, and those about the whole of it.

        A refusal is about the whole, whichever page was tried.
        """
        return [
            call
            for call in self.calls
            if call.name in ("open", "size", "blocks")
            or isinstance(call.answer, str)
            or call.first <= page < call.first + call.pages
        ]


class TracedOpener(Opener):
    """
    An ``Opener`` whose objects write down what they answer.

    :param trace: where to.
    """

    trace: Trace

    def open(self, mapping: Mapping) -> Backing | str:
        """Open the object of a mapping, as ``Opener`` does."""
        found = super().open(mapping)
        if isinstance(found, str):
            self.trace.add("open", 0, 0, found)
            return found
        self.trace.add("open", 0, 0, (int(found.is_quiet()),))
        return TracedBacking(
            found.fd,
            found.kind,
            found.page_size_bytes,
            found.meter,
            found.is_writable,
            found.path,
            self.trace,
        )


@dataclass(slots=True)
class TracedBacking(Backing):
    """
    A ``Backing`` that writes down what it answers.

    :param trace: where to.
    """

    # A class with slots is made anew by the decorator, so that super() does not find it.
    trace: Trace = field(default_factory=Trace)

    def size_pages(self) -> int:
        """Return the pages up to the end of the object."""
        pages = Backing.size_pages(self)
        self.trace.add("size", 0, 0, (pages, os.fstat(self.fd).st_size))
        return pages

    def allocated_pages(self) -> int:
        """Return the pages that the object owns."""
        pages = Backing.allocated_pages(self)
        self.trace.add("blocks", 0, 0, (pages,))
        return pages

    def data_extents(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return where SEEK_DATA says that there is data."""
        extents = Backing.data_extents(self, first, stop)
        self.trace.add("seek", first, stop - first, tuple(extents.ravel().tolist()))
        return extents

    def cachestat(self, first: int, pages: int) -> tuple[int, int]:
        """Return how many pages are in the page cache, and how many were evicted."""
        try:
            found = Backing.cachestat(self, first, pages)
        except OSError as error:
            self.trace.add("cachestat", first, pages, os.strerror(error.errno or 0))
            raise
        # Before the size is known, it was only tried whether this reader may ask.
        if any(call.name == "size" for call in self.trace.calls):
            self.trace.add("cachestat", first, pages, found)
        return found

    def mincore(self, first: int, pages: int) -> NDArray[np.bool_]:
        """Return whether each page is in RAM."""
        resident = Backing.mincore(self, first, pages)
        self.trace.add("mincore", first, pages, tuple(resident.astype(int).tolist()))
        return resident
