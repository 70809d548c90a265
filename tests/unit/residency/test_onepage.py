"""What is said of looks at a page that do not agree in themselves, or with each other."""

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from memlens.kernel.maps import parse_maps
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.process import ProcessDir
from memlens.pages.classes import PageClass
from memlens.residency.onepage import PageLook
from memlens.residency.places import WalkedPage
from memlens.residency.steps import page_notes
from memlens.scan.machine import Machine

(MAPPING,) = parse_maps(b"00400000-00401000 r--s 00000000 00:2a 131 /m/file\n")
LookOf = Callable[..., PageLook]


@pytest.fixture
def look_of() -> Iterator[LookOf]:
    """Return a maker of looks that found a slot where the verdict is another one."""
    machine = Machine()
    with ProcessDir(os.getpid(), machine) as process:
        pagemap = Pagemap(process.open("pagemap"), machine, process.path)

        def make(tries: int, *, slot: int = 5, is_same: bool = True) -> PageLook:
            look = PageLook(process, pagemap, MAPPING.start, machine, tries=tries)
            look.mapping, look.word, look.value = MAPPING, 0, int(PageClass.CACHED)
            look.walked = WalkedPage("swap", 0, slot)
            look.is_contradicted = is_same
            return look

        yield make
        pagemap.close()


def note_of(looks: list[PageLook]) -> str:
    for before, look in itertools.pairwise(looks):
        look.compare(before)
    (note,) = page_notes(looks[-1])
    return note


def test_what_never_changes_is_not_said_to(look_of: LookOf) -> None:
    note = note_of([look_of(1), look_of(2), look_of(3)])
    assert "contradicts itself" in note
    assert "nothing changed during 3 looks" in note


@pytest.mark.parametrize("first", [{"slot": 6}, {"is_same": False}])
def test_evidence_at_odds_may_be_a_page_on_the_move(
    look_of: LookOf, first: dict[str, int]
) -> None:
    """Any look that saw something else will do, and be it the first."""
    note = note_of([look_of(1, **first), look_of(2), look_of(3)])
    assert note == "the page changed during each of 3 looks: this is of the last"
