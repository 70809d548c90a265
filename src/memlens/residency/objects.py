"""
What objects are and said within one scan, shared by all that map them.

A machine's processes map the same libraries; asked by each of them, an object costs an open
and some calls every time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.kernel.maps import Mapping, Place
from memlens.objects.opener import REPLACED, ObjectFacts, Opener
from memlens.pages.runs import Runs, clip_runs, concat_runs
from memlens.pages.slotruns import NO_SLOTS, SlotRuns
from memlens.residency.answers import ObjectReader
from memlens.residency.walk import Walking

# An answer is used again for so long; then the object is asked anew.
_AGE_S = 1.0

# Of larger objects only what is asked is told.
_WHOLE_PAGES = 1 << 14

# More answers than that are not kept: the oldest go.
_MOST_ANSWERS = 1 << 12


class Answer(NamedTuple):
    """Verdicts of the pages of an object that an answer covers, and when it was given."""

    runs: Runs
    given_at: float


@dataclass(slots=True)
class Objects:
    """
    What is known of objects, by device, inode and path.

    :param is_shared: whether several processes are scanned; one by itself asks each object
        about what it maps, once for all of its mappings.
    :param facts: what each is; none that could not be found out, for that may depend on who
        maps it.
    """

    is_shared: bool = False
    facts: dict[tuple[str, int, str], ObjectFacts] = field(default_factory=dict)
    _answers: dict[Place, Answer] = field(default_factory=dict)
    _opened: tuple[tuple[object, ...], ObjectReader] | None = None

    def open(
        self, opener: Opener, mapping: Mapping, facts: ObjectFacts, walking: Walking
    ) -> ObjectReader | str:
        """Open an object, or go on with the last one if it is the same; or say why not."""
        key = (mapping.device, mapping.inode, mapping.path, facts.kind)
        if self._opened is not None and self._opened[0] == key:
            return self._opened[1]
        self.close()
        backing = opener.open(mapping)
        if isinstance(backing, str):
            return backing
        if backing.kind != facts.kind:
            backing.close()
            return REPLACED
        try:
            reader = ObjectReader(backing, walking.machine, walking)
        except OSError as error:
            backing.close()
            return f"asking the object: {error.strerror}"
        self._opened = key, reader
        return reader

    def close(self) -> None:
        """Close the object that was asked last: what is open is kept alive."""
        if self._opened is not None:
            self._opened[1].backing.close()
            self._opened = None

    def find(self, place: Place, windows: list[tuple[int, int]]) -> Runs | None:
        """
        Return what an object said of ranges of its pages, None if it has to be asked.

        :param windows: half-open ranges, in order.
        """
        answer = self._answers.get(place)
        if answer is None:
            return None
        if time.monotonic() - answer.given_at > _AGE_S:
            del self._answers[place]
            return None
        runs = answer.runs
        if windows[0][0] < int(runs.first[0]) or windows[-1][1] > int(runs.stop[-1]):
            return None
        return concat_runs([clip_runs(runs, *window) for window in windows])

    def answers(
        self,
        place: Place,
        windows: list[tuple[int, int]],
        opened: Callable[[], ObjectReader | str],
    ) -> Runs | str:
        """
        Return what an object says of ranges of its pages, or why it cannot be asked.

        :param windows: half-open ranges, in order.
        :param opened: opens it, if it has to be asked.
        """
        found = self.find(place, windows)
        if found is not None:
            return found
        reader = opened()
        if isinstance(reader, str):
            return reader
        try:
            return self._ask(place, reader, windows)
        except OSError as error:
            return f"asking the object: {error.strerror}"

    def take_slots(self) -> SlotRuns:
        """Return where pages of the object that was asked last are, if that is wanted."""
        walk = None if self._opened is None else self._opened[1].walk
        return NO_SLOTS if walk is None else walk.take_slots()

    def _ask(self, place: Place, reader: ObjectReader, windows: list[tuple[int, int]]) -> Runs:
        """Ask an object about ranges of its pages, and keep what others can use."""
        pages = max(reader.backing.size_pages(), windows[-1][1])
        # Every IPC namespace numbers its System V segments anew.
        is_kept = (
            self.is_shared and pages <= _WHOLE_PAGES and not place.path.startswith("/SYSV")
        )
        given_at = time.monotonic()
        found = reader.settled_verdicts([(0, pages)] if is_kept else windows)
        if not is_kept:
            return found
        if len(self._answers) >= _MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._answers[place] = Answer(found, given_at)
        return concat_runs([clip_runs(found, *window) for window in windows])
