"""Records of ``memlens doctor`` and ``memlens demo``."""

from dataclasses import dataclass

from memlens.residency.records import Kernel
from memlens.selftest.probes import Features


@dataclass(frozen=True, slots=True)
class Gap:
    """
    Something that cannot be said.

    :param text: what, as the end of "leaves open ...".
    :param needs: the least that would be enough, "" if it was switched off on purpose.
    """

    text: str
    needs: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """
    What can be said about one kind of process.

    :param scope: ``own``, ``other`` or ``frames``.
    :param title: of what, for a person.
    :param level: ``everything``, ``part`` or ``nothing``.
    :param gaps: what is left open.
    """

    scope: str
    title: str
    level: str
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Abilities:
    """
    The interfaces, and what follows from them.

    :param features: every interface with its proof or the reason why it is missing.
    :param outlooks: for own processes, those of other users, and page frames.
    :param area_numbers: for each swap area, the first and the last number that it can
        have in page-table entries.
    """

    features: Features
    outlooks: tuple[Outlook, ...]
    area_numbers: tuple[tuple[int, int], ...]

    @property
    def is_complete(self) -> bool:
        """Return whether no interface is missing."""
        return not self.features.missing()


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What was said of pages of a specimen.

    :param pages: how many.
    :param naive: what pagemap alone says: ``present``, ``swapped`` or ``nothing``.
    :param found: label of what memlens says.
    :param is_misleading: whether pagemap alone says something untrue of them.
    """

    pages: int
    naive: str
    found: str
    is_misleading: bool


@dataclass(frozen=True, slots=True)
class Disagreement:
    """
    A page that is not what it was made to be.

    :param page: its number in the specimen.
    :param expected: labels of what it may be.
    :param found: label of what memlens said.
    """

    page: int
    expected: tuple[str, ...]
    found: str


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One specimen, and what was said of it.

    :param family: the kind of memory.
    :param how: how it was made.
    :param address: of its first page.
    :param pages: how many.
    :param answers: what was said of its pages, in the order of the pages.
    :param disagreements: pages that memlens got wrong.
    :param unknown: reasons why pages could not be known.
    """

    family: str
    how: str
    address: int
    pages: int
    answers: tuple[Answer, ...]
    disagreements: tuple[Disagreement, ...]
    unknown: tuple[str, ...]

    @property
    def misled_pages(self) -> int:
        """Return of how many pages pagemap alone says something untrue."""
        return sum(answer.pages for answer in self.answers if answer.is_misleading)

    @property
    def unknown_pages(self) -> int:
        """Return how many pages could not be known."""
        return sum(answer.pages for answer in self.answers if answer.found == "unknown")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A kind of memory that could not be made or not be kept, and why."""

    family: str
    how: str
    why: str


@dataclass(frozen=True, slots=True)
class SwapUse:
    """
    The swap of a demo.

    :param kind: ``none``, ``zram`` or ``slow``.
    :param paths: the devices and files.
    :param is_made: whether the demo made it, and took it away.
    :param reason: why there is none, "" if there is.
    """

    kind: str
    paths: tuple[str, ...] = ()
    is_made: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """
    What a demo found.

    :param kernel: the kernel that it ran on.
    :param swap: the swap it had.
    :param findings: one for each specimen, in the order of the recipes.
    :param left_out: what is missing.
    :param wall_s: seconds that it took.
    :param leftovers: what could not be taken away again, "" if everything was.
    """

    kernel: Kernel
    swap: SwapUse
    findings: tuple[Finding, ...]
    left_out: tuple[LeftOut, ...]
    wall_s: float
    leftovers: str = ""

    @property
    def pages(self) -> int:
        """Return how many pages were looked at."""
        return sum(finding.pages for finding in self.findings)

    @property
    def disagreeing_pages(self) -> int:
        """Return how many pages memlens got wrong."""
        return sum(len(finding.disagreements) for finding in self.findings)

    @property
    def unknown_pages(self) -> int:
        """Return how many pages could not be known."""
        return sum(finding.unknown_pages for finding in self.findings)

    @property
    def misled_pages(self) -> int:
        """Return of how many pages pagemap alone says something untrue."""
        return sum(finding.misled_pages for finding in self.findings)
