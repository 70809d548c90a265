"""The tables of classes: complete, in step with each other, and as documented."""

from itertools import combinations

import pytest

from memlens.pages.classes import (
    CLASSES,
    EVERY,
    OBJECT_TABLE,
    REASONS,
    Entry,
    Evidence,
    PageClass,
    Reason,
    Verdict,
    entry_verdicts,
    object_verdicts,
    verdict_class,
)

MAPPING_KINDS = ("anonymous", "private", "shared", "special")
SEEK = Evidence.DATA | Evidence.HOLE
MINCORE = Evidence.RESIDENT | Evidence.ABSENT
CACHESTAT = Evidence.CACHE | Evidence.EVICTED | Evidence.NEITHER

# What the kernel answers for a page whose state is known: SEEK_DATA, mincore, cachestat.
SHMEM_PAGES = [
    (PageClass.CACHED, Evidence.DATA | Evidence.RESIDENT | Evidence.CACHE),
    (PageClass.SWAPPED, Evidence.DATA | Evidence.ABSENT | Evidence.EVICTED),
    (PageClass.SWAP_CACHED, Evidence.DATA | Evidence.RESIDENT | Evidence.EVICTED),
    (PageClass.NONE, Evidence.HOLE | Evidence.ABSENT | Evidence.NEITHER),
    (PageClass.PREALLOCATED, Evidence.HOLE | Evidence.ABSENT | Evidence.CACHE),
]
FILE_PAGES = [
    (PageClass.CACHED, Evidence.DATA | Evidence.RESIDENT | Evidence.CACHE),
    (PageClass.CACHED, Evidence.HOLE | Evidence.RESIDENT | Evidence.CACHE),
    (PageClass.ON_DISK, Evidence.DATA | Evidence.ABSENT | Evidence.NEITHER),
    (PageClass.ON_DISK, Evidence.DATA | Evidence.ABSENT | Evidence.EVICTED),
    (PageClass.NONE, Evidence.HOLE | Evidence.ABSENT | Evidence.NEITHER),
    (PageClass.NONE, Evidence.HOLE | Evidence.ABSENT | Evidence.EVICTED),
]
RAMFS_PAGES = [
    (PageClass.CACHED, Evidence.DATA | Evidence.RESIDENT | Evidence.CACHE),
    (PageClass.NONE, Evidence.DATA | Evidence.ABSENT | Evidence.NEITHER),
]
KNOWN_PAGES = [
    *(("shmem", *row) for row in SHMEM_PAGES),
    *(("file", *row) for row in FILE_PAGES),
    *(("ramfs", *row) for row in RAMFS_PAGES),
]


def test_every_class_has_one_row_and_one_sign() -> None:
    assert [row.page_class for row in CLASSES] == list(PageClass)
    assert len({row.sign for row in CLASSES}) == len(PageClass)
    assert all(len(row.sign) == 1 and row.sign.isascii() for row in CLASSES)


def test_classes_are_stored_as_numbers_that_stay() -> None:
    """Captures on disk hold them."""
    assert [kind.label for kind in PageClass] == [
        "present",
        "zero",
        "cached",
        "swap_cached",
        "swapped",
        "on_disk",
        "preallocated",
        "none",
        "guard",
        "poisoned",
        "beyond_end",
        "device",
        "unknown",
    ]
    assert list(PageClass) == list(range(13))


def test_every_reason_has_its_text() -> None:
    assert [reason - Verdict.FIRST_REASON for reason in Reason] == list(range(len(REASONS)))
    assert len(set(REASONS)) == len(REASONS)


@pytest.mark.parametrize("kind", MAPPING_KINDS)
def test_every_entry_has_a_verdict(kind: str) -> None:
    assert len(entry_verdicts(kind)) == len(Entry)


@pytest.mark.parametrize("kind", EVERY)
def test_every_evidence_has_a_verdict_that_means_something(kind: str) -> None:
    verdicts, _ = object_verdicts(kind)
    allowed = set(PageClass) | {Verdict.AGAIN} | set(Reason)
    assert set(verdicts.tolist()) <= allowed


def test_every_row_of_the_object_table_decides_something() -> None:
    """A row that an earlier one shadows for all its kinds says nothing."""
    for number, row in enumerate(OBJECT_TABLE):
        shadows = [
            kind
            for kind in row.kinds
            if not any(
                kind in earlier.kinds and row.all_of & earlier.all_of == earlier.all_of
                for earlier in OBJECT_TABLE[:number]
            )
        ]
        assert shadows, row


@pytest.mark.parametrize(
    ("kind", "expected", "evidence"),
    KNOWN_PAGES,
    ids=[
        f"{kind}-{expected.label}-{int(evidence)}" for kind, expected, evidence in KNOWN_PAGES
    ],
)
def test_known_page(kind: str, expected: PageClass, evidence: Evidence) -> None:
    verdicts, _ = object_verdicts(kind)
    assert PageClass(verdicts[evidence]) is expected


@pytest.mark.parametrize(
    ("kind", "expected", "evidence"),
    KNOWN_PAGES,
    ids=[
        f"{kind}-{expected.label}-{int(evidence)}" for kind, expected, evidence in KNOWN_PAGES
    ],
)
def test_less_evidence_never_gives_another_class(
    kind: str, expected: PageClass, evidence: Evidence
) -> None:
    """With interfaces missing a verdict is the same or `unknown`, never a different one."""
    verdicts, _ = object_verdicts(kind)
    for size in range(3):
        for asked in combinations((SEEK, MINCORE, CACHESTAT), size):
            left = Evidence(0)
            for mask in asked:
                left |= evidence & mask
            assert verdict_class(int(verdicts[left])) in (expected, PageClass.UNKNOWN), left


def test_past_the_end_beats_everything() -> None:
    for kind in EVERY:
        verdicts, _ = object_verdicts(kind)
        beyond = [evidence for evidence in range(256) if evidence & Evidence.PAST_END]
        assert {int(verdicts[evidence]) for evidence in beyond} == {PageClass.BEYOND_END}


def test_what_only_shmem_can_be() -> None:
    """Nothing on disk is on swap, whatever a shadow entry suggests."""
    for kind in set(EVERY) - {"shmem"}:
        verdicts, _ = object_verdicts(kind)
        assert not {PageClass.SWAPPED, PageClass.SWAP_CACHED} & set(verdicts.tolist())


def test_mincore_alone_never_decides_for_shmem() -> None:
    """A page in the swap cache is resident too, and a page never written is not."""
    verdicts, _ = object_verdicts("shmem")
    for evidence in (Evidence.RESIDENT, Evidence.ABSENT):
        assert verdict_class(int(verdicts[evidence])) is PageClass.UNKNOWN


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence.CACHE | Evidence.HOLE | Evidence.ABSENT,
        Evidence.EVICTED | Evidence.DATA | Evidence.RESIDENT,
        Evidence.EVICTED | Evidence.HOLE | Evidence.ABSENT,
        Evidence.NEITHER | Evidence.DATA | Evidence.ABSENT,
        Evidence.HOLE | Evidence.RESIDENT,
    ],
)
def test_pairs_that_a_race_gives_too_are_looked_at_twice(evidence: Evidence) -> None:
    _, is_odd = object_verdicts("shmem")
    assert is_odd[evidence]


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence.CACHE | Evidence.DATA | Evidence.RESIDENT,
        Evidence.EVICTED | Evidence.DATA | Evidence.ABSENT,
        Evidence.NEITHER | Evidence.HOLE | Evidence.ABSENT,
    ],
)
def test_plain_answers_are_looked_at_once(evidence: Evidence) -> None:
    _, is_odd = object_verdicts("shmem")
    assert not is_odd[evidence]


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("anonymous", Entry.EMPTY, PageClass.NONE),
        ("anonymous", Entry.SWAP, PageClass.SWAPPED),
        ("anonymous", Entry.WP_MARKER, PageClass.NONE),
        ("private", Entry.SWAP, PageClass.SWAPPED),
        ("private", Entry.EMPTY, Verdict.ASK),
        ("private", Entry.WP_MARKER, Verdict.ASK),
        ("shared", Entry.EMPTY, Verdict.ASK),
        ("shared", Entry.WP_MARKER, Verdict.ASK),
        ("shared", Entry.SWAP, Reason.SHARED_SWAP),
        ("special", Entry.EMPTY, Reason.KERNEL_MEMORY),
        ("anonymous", Entry.FILE_PAGE, PageClass.ZERO),
        *((kind, Entry.FILE_PAGE, PageClass.PRESENT) for kind in MAPPING_KINDS[1:]),
        *((kind, Entry.GUARD, PageClass.GUARD) for kind in MAPPING_KINDS),
        *((kind, Entry.POISON, PageClass.POISONED) for kind in MAPPING_KINDS),
        *((kind, Entry.PRESENT, PageClass.PRESENT) for kind in MAPPING_KINDS),
        *((kind, Entry.ZERO, PageClass.ZERO) for kind in MAPPING_KINDS),
        *((kind, Entry.TRANSIT, Verdict.AGAIN) for kind in MAPPING_KINDS),
    ],
)
def test_entry_verdict(kind: str, entry: Entry, expected: int) -> None:
    assert entry_verdicts(kind)[entry] == expected


def test_reasons_are_unknown() -> None:
    assert {verdict_class(reason) for reason in Reason} == {PageClass.UNKNOWN}
    assert [verdict_class(kind) for kind in PageClass] == list(PageClass)
