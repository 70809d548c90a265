"""Filter expressions, and the bits-spec of page-types."""

from collections.abc import Callable

import numpy as np
import pytest

from memlens.pages.flagfilter import (
    Filter,
    FilterError,
    all_of,
    find_mask,
    parse_bits,
    parse_where,
)
from memlens.pages.flags import mask_of

ANON, LRU, DIRTY = (int(mask_of(name)) for name in ("ANON", "LRU", "DIRTY"))
EVERY = [0, ANON, LRU, DIRTY, ANON | LRU, ANON | DIRTY, LRU | DIRTY, ANON | LRU | DIRTY]


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("anon and not lru", lambda a, lru, d: a and not lru),
        ("anon or lru and dirty", lambda a, lru, d: a or (lru and d)),
        ("(anon or lru) and dirty", lambda a, lru, d: (a or lru) and d),
        ("not (anon or KPF_LRU)", lambda a, lru, d: not (a or lru)),
        ("not not anonymous", lambda a, lru, d: a),
        ("!anon&lru|dirt", lambda a, lru, d: (not a and lru) or d),
        ("  bit12  ", lambda a, lru, d: a),
        ("NOT Anon AND Lru", lambda a, lru, d: not a and lru),
    ],
)
def test_where_keeps_what_it_says(text: str, keeps: object) -> None:
    found = parse_where(text)(np.array(EVERY, np.uint64)).tolist()
    wanted = [bool(keeps(w & ANON, w & LRU, w & DIRTY)) for w in EVERY]
    assert found == wanted


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("anon and", 8),
        ("anon and lru2", 9),
        ("anon lru", 5),
        ("(anon", 5),
        ("anon)", 4),
        ("anon @ lru", 5),
        ("c", 0),
        ("and", 0),
        ("bit64", 0),
        ("(" * 60 + "anon", 50),
    ],
)
def test_errors_point_at_the_place(text: str, position: int) -> None:
    with pytest.raises(FilterError) as caught:
        parse_where(text)
    assert caught.value.position == position
    assert f"{text[:position]}▸" in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "text", "mask"),
    [
        (parse_where, "anon and not (lru or dirty)", ANON | LRU | DIRTY),
        (parse_where, "not not lru", LRU),
        (parse_bits, "lru,dirty", LRU | DIRTY),
        (parse_bits, "lru,~dirty", LRU | DIRTY),
        (parse_bits, "lru,dirty=lru", LRU | DIRTY),
        (parse_bits, "=lru", (1 << 64) - 1),
    ],
)
def test_a_filter_knows_the_bits_that_it_looks_at(
    parse: Callable[[str], Filter], text: str, mask: int
) -> None:
    assert parse(text).mask == mask
    assert all_of([parse(text), parse_where("anon")]).mask == mask | ANON


def test_a_misspelt_flag_is_named() -> None:
    with pytest.raises(FilterError, match="did you mean dirty"):
        parse_where("dirtyy")


def test_exact_names_win_over_beginnings() -> None:
    assert find_mask("swap") == 1 << 62
    assert find_mask("swapc") == 1 << 13
    assert find_mask("comp") is None


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("anon,lru", [w & (ANON | LRU) != 0 for w in EVERY]),
        ("anon,lru=anon", [w & (ANON | LRU) == ANON for w in EVERY]),
        ("anon,~lru", [w & (ANON | LRU) == ANON for w in EVERY]),
        ("=anon,lru", [w == ANON | LRU for w in EVERY]),
        ("0x20", [w & LRU != 0 for w in EVERY]),
        ("~lru", [w & LRU == 0 for w in EVERY]),
    ],
)
def test_bits_are_as_page_types_has_them(text: str, keeps: list[bool]) -> None:
    assert parse_bits(text)(np.array(EVERY, np.uint64)).tolist() == keeps


def test_bits_take_the_lowest_that_begins_so() -> None:
    assert parse_bits("swap")(np.array([1 << 13, 1 << 62], np.uint64)).tolist() == [True, False]


@pytest.mark.parametrize(("text", "position"), [("lru,zzz", 4), ("lru=~zzz,yyy", 9)])
def test_a_bad_bits_spec_points_at_the_place(text: str, position: int) -> None:
    with pytest.raises(FilterError) as caught:
        parse_bits(text)
    assert caught.value.position == position
