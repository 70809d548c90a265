"""
What objects said within one scan: all that map an object share what it is, and its answers.

A machine's processes map the same libraries; asked by each of them, an object costs an open
and some calls every time.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.objects.opener import ObjectFacts
from memlens.pages.runs import Runs, clip_runs, concat_runs

# An answer is used again for so long; then the object is asked anew.
_AGE_S = 1.0

# Of larger objects only what is asked is told.
_WHOLE_PAGES = 1 << 14
FactsKey = tuple[str, int, str]


class Answer(NamedTuple):
    """Verdicts of the pages of an object that an answer covers, and when it was given."""

    runs: Runs
    given_at: float


@dataclass(slots=True)
class SharedAnswers:
    """
    What is known of objects, by device, inode and path.

    :param facts: what each is; none that could not be found out, for that may depend on who
        maps it.
    """

    facts: dict[FactsKey, ObjectFacts] = field(default_factory=dict)
    _answers: dict[FactsKey, Answer] = field(default_factory=dict)

    def find(self, key: FactsKey, windows: list[tuple[int, int]]) -> Runs | None:
        """
        Return what an object said of ranges of its pages, None if it has to be asked.

        :param windows: half-open ranges, in order.
        """
        answer = self._answers.get(key)
        if answer is None:
            return None
        if time.monotonic() - answer.given_at > _AGE_S:
            del self._answers[key]
            return None
        runs = answer.runs
        if windows[0][0] < int(runs.first[0]) or windows[-1][1] > int(runs.stop[-1]):
            return None
        return concat_runs([clip_runs(runs, *window) for window in windows])

    def whole(self, key: FactsKey, pages: int, stop: int) -> tuple[int, int] | None:
        """
        Return which pages to ask about so that others can use it, None if not to ask more.

        :param pages: pages of the object.
        :param stop: page after the last that is asked now.
        """
        # Every IPC namespace numbers its System V segments anew.
        is_shareable = not key[2].startswith("/SYSV")
        stop = max(pages, stop)
        return (0, stop) if is_shareable and stop <= _WHOLE_PAGES else None

    def keep(self, key: FactsKey, runs: Runs, given_at: float) -> None:
        """
        Keep an answer.

        :param given_at: when it was asked for, by ``time.monotonic``.
        """
        self._answers[key] = Answer(runs, given_at)
