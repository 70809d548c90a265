"""Which parts of a file system mounts have not shown yet."""

from memlens.objects.tmpfs import Coverage


def _go(seen: Coverage, root: str, *covered: str) -> list[str]:
    starts = seen.starts(root, covered)
    for start in starts:
        seen.add(start, covered)
    return starts


def test_the_whole_is_gone_through_once() -> None:
    seen = Coverage()
    assert _go(seen, "/") == ["/"]
    assert _go(seen, "/") == []
    assert _go(seen, "/part") == []
    assert seen.is_seen("/")


def test_what_is_covered_in_one_place_is_looked_for_in_others() -> None:
    seen = Coverage()
    assert _go(seen, "/", "/a", "/a/b", "/c") == ["/"]
    assert seen.hidden == {"/a", "/c"}
    assert _go(seen, "/", "/a", "/c") == []
    assert _go(seen, "/", "/c/d") == ["/a", "/c"]
    assert seen.hidden == {"/c/d"}
    assert _go(seen, "/c") == ["/c/d"]
    assert seen.hidden == set()


def test_a_cover_above_hides_what_is_below() -> None:
    seen = Coverage()
    _go(seen, "/", "/a/b")
    assert _go(seen, "/", "/a") == []
    assert _go(seen, "/a") == ["/a/b"]


def test_a_part_does_not_show_the_rest() -> None:
    seen = Coverage()
    assert _go(seen, "/a") == ["/a"]
    assert _go(seen, "/a") == []
    assert _go(seen, "/a", "/a/b") == ["/a"]
    assert seen.is_seen("/a")
    assert not seen.is_seen("/")
    assert not seen.is_seen("/ab")
