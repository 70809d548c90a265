"""What follows from a missing interface, on features made here."""

import pytest

from memlens.kernel.swaps import Swap, SwapArea
from memlens.selftest.doctor import derive_abilities
from memlens.selftest.probe_ground import Reader
from memlens.selftest.probe_rows import PROBE_TABLE
from memlens.selftest.probes import Features, Probe
from memlens.selftest.records import Abilities, Outlook

# What does not bear on what `memlens map` says.
HARMLESS = {"guard", "page_idle", "soft_dirty", "uffd_wp", "uffd_wp_async"}


def features(*missing: str, areas: int = 0) -> Features:
    probes = tuple(
        Probe(row.name, False, "", "gone", f"the key to {row.name}", row.group, row.title)
        if row.name in missing
        else Probe(row.name, True, "seen", "", "", row.group, row.title)
        for row in PROBE_TABLE
    )
    swap = Swap(tuple(SwapArea(n, f"/swap{n}", "file", 8, 0, -n) for n in range(areas)))
    return Features("6.18.0", 4096, "/proc", Reader(0, (), True, True, False), probes, swap, ())


def outlook(abilities: Abilities, scope: str) -> Outlook:
    return next(found for found in abilities.outlooks if found.scope == scope)


def test_everything() -> None:
    abilities = derive_abilities(features())
    assert abilities.is_complete
    assert [(row.scope, row.level, row.gaps) for row in abilities.outlooks] == [
        ("own", "everything", ()),
        ("other", "everything", ()),
        ("frames", "everything", ()),
    ]


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_a_map_does_not_need(name: str) -> None:
    abilities = derive_abilities(features(name))
    assert not abilities.is_complete
    assert {row.level for row in abilities.outlooks} == {"everything"}


@pytest.mark.parametrize("name", ["map_files", "unwritable_files", "seek_data", "cachestat"])
def test_what_a_map_is_poorer_without(name: str) -> None:
    own = outlook(derive_abilities(features(name)), "own")
    assert own.level == "part"
    assert [gap.needs for gap in own.gaps] == [f"the key to {name}"]


def test_zero_pages_are_told_by_either() -> None:
    def texts(*missing: str) -> str:
        return " ".join(gap.text for gap in outlook(derive(*missing), "own").gaps)

    def derive(*missing: str) -> Abilities:
        return derive_abilities(features(*missing))

    assert "zero page" not in texts("pfns")
    assert "zero page" not in texts("pagemap_scan")
    assert "zero page" in texts("pfns", "pagemap_scan")


def test_own_processes_that_cannot_be_read() -> None:
    own = outlook(derive_abilities(features("pagemap", "map_files")), "own")
    assert own.level == "nothing"
    assert [gap.needs for gap in own.gaps] == ["the key to pagemap"]


@pytest.mark.parametrize("name", ["other_pagemap", "other_smaps"])
def test_processes_of_others_that_cannot_be_read(name: str) -> None:
    abilities = derive_abilities(features(name))
    assert outlook(abilities, "other").level == "nothing"
    assert outlook(abilities, "own").level == "everything"


def test_map_files_of_others() -> None:
    abilities = derive_abilities(features("other_map_files"))
    assert outlook(abilities, "other").level == "part"
    assert outlook(abilities, "own").level == "everything"


def test_without_the_walk_slots_and_some_objects_stay_open() -> None:
    for scope in ("own", "other"):
        found = outlook(derive_abilities(features("cachewalk")), scope)
        assert found.level == "part"
        assert [gap.needs for gap in found.gaps] == ["the key to cachewalk"]
        assert "hugetlbfs" in found.gaps[0].text


def test_page_frames() -> None:
    assert outlook(derive_abilities(features("kpagecount")), "frames").level == "part"
    assert outlook(derive_abilities(features("pfns")), "frames").level == "nothing"


def test_area_numbers() -> None:
    assert derive_abilities(features(areas=2)).area_numbers == ((0, 21), (1, 22))
