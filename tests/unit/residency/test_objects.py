"""Answers of objects are kept for others, but not for ever, and not without end."""

import pytest

from memlens.kernel.maps import Place
from memlens.residency import objects
from memlens.residency.answers import ObjectReader
from memlens.residency.objects import Objects
from tests.property.plainobject import PlainMachine, PlainObject

PLACE = Place("00:01", 7, "/dev/zero (deleted)")


class Opening:
    """Opens an object, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> ObjectReader:
        self.times += 1
        item = PlainObject("shmem", ["written", "hole", "written"])
        return ObjectReader(item, PlainMachine(disabled=frozenset()))


def ask(shared: Objects, place: Place, opening: Opening) -> list[tuple[int, int, int]]:
    found = shared.answers(place, [(1, 2)], opening)
    assert not isinstance(found, str)
    return list(found)


def test_an_object_is_asked_once_for_all_that_map_it() -> None:
    shared, opening = Objects(is_shared=True), Opening()
    assert ask(shared, PLACE, opening) == ask(shared, PLACE, opening)
    assert opening.times == 1


def test_one_process_by_itself_keeps_nothing() -> None:
    alone, opening = Objects(), Opening()
    assert ask(alone, PLACE, opening) == ask(alone, PLACE, opening)
    assert opening.times == 2


def test_segments_of_other_namespaces_are_other_objects() -> None:
    shared, opening = Objects(is_shared=True), Opening()
    for _ in range(2):
        ask(shared, PLACE._replace(path="/SYSV00000000 (deleted)"), opening)
    assert opening.times == 2


def test_an_old_answer_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, opening = Objects(is_shared=True), Opening()
    ask(shared, PLACE, opening)
    monkeypatch.setattr(objects, "_AGE_S", -1.0)
    ask(shared, PLACE, opening)
    assert opening.times == 2


def test_the_oldest_answers_go_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_MOST_ANSWERS", 2)
    shared, opening = Objects(is_shared=True), Opening()
    for inode in (1, 2, 3):
        ask(shared, PLACE._replace(inode=inode), opening)
    ask(shared, PLACE._replace(inode=3), opening)
    assert opening.times == 3
    ask(shared, PLACE._replace(inode=1), opening)
    assert opening.times == 4


def test_why_an_object_is_not_opened_is_said() -> None:
    assert Objects().answers(PLACE, [(0, 1)], lambda: "a lease") == "a lease"
