"""What follows from a missing interface, on features made here."""

import pytest

from memlens.selftest.doctor import PROBE_TABLE, ProbeRow, derive_outlooks
from memlens.selftest.records import Gap, Probe

# What does not bear on what `memlens map` says.
HARMLESS = {"guard", "page_idle", "soft_dirty", "uffd_wp", "uffd_wp_async"}


def probes(*missing: str) -> dict[str, Probe]:
    return {
        row.name: Probe(row.name, False, "", "gone", f"the key to {row.name}", *rest(row))
        if row.name in missing
        else Probe(row.name, True, "seen", "", "", *rest(row))
        for row in PROBE_TABLE
    }


def rest(row: ProbeRow) -> tuple[str, str]:
    return row.group, row.title


def levels(*missing: str) -> dict[str, str]:
    outlooks, _ = derive_outlooks(probes(*missing))
    return {row.scope: row.level for row in outlooks}


def gaps(scope: str, *missing: str) -> list[Gap]:
    _, found = derive_outlooks(probes(*missing))
    return [gap for gap in found if gap.scope == scope]


def test_everything() -> None:
    assert levels() == {"own": "everything", "other": "everything", "frames": "everything"}
    assert not len(derive_outlooks(probes())[1])


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_a_map_does_not_need(name: str) -> None:
    assert set(levels(name).values()) == {"everything"}


@pytest.mark.parametrize("name", ["map_files", "unwritable_files", "seek_data", "cachestat"])
def test_what_a_map_is_poorer_without(name: str) -> None:
    assert levels(name)["own"] == "part"
    assert [gap.needs for gap in gaps("own", name)] == [f"the key to {name}"]


def test_zero_pages_are_told_by_either() -> None:
    def texts(*missing: str) -> str:
        return " ".join(gap.text for gap in gaps("own", *missing))

    assert "zero page" not in texts("pfns")
    assert "zero page" not in texts("pagemap_scan")
    assert "zero page" in texts("pfns", "pagemap_scan")


def test_own_processes_that_cannot_be_read() -> None:
    assert levels("pagemap", "map_files")["own"] == "nothing"
    assert [gap.needs for gap in gaps("own", "pagemap", "map_files")] == ["the key to pagemap"]


@pytest.mark.parametrize("name", ["other_pagemap", "other_smaps"])
def test_processes_of_others_that_cannot_be_read(name: str) -> None:
    assert levels(name)["other"] == "nothing"
    assert levels(name)["own"] == "everything"


def test_map_files_of_others() -> None:
    assert levels("other_map_files")["other"] == "part"
    assert levels("other_map_files")["own"] == "everything"


def test_without_the_walk_slots_and_some_objects_stay_open() -> None:
    for scope in ("own", "other"):
        assert levels("cachewalk")[scope] == "part"
        found = gaps(scope, "cachewalk")
        assert [gap.needs for gap in found] == ["the key to cachewalk"]
        assert "hugetlbfs" in found[0].text


def test_page_frames() -> None:
    assert levels("kpagecount")["frames"] == "part"
    assert levels("pfns")["frames"] == "nothing"


def test_nothing_follows_from_what_was_not_asked() -> None:
    asked = probes()
    del asked["kpagecgroup"]
    outlooks, _ = derive_outlooks(asked)
    assert [row.scope for row in outlooks] == ["own", "other"]
