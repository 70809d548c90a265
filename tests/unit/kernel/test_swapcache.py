"""The proof that the swap cache is empty."""

from pathlib import Path

import pytest

from memlens.kernel.swaps import is_swap_cache_empty


def make_proc(path: Path, vmstat: str, has_refresh: bool = True) -> str:
    (path / "sys/vm").mkdir(parents=True)
    if has_refresh:
        (path / "sys/vm/stat_refresh").write_text("")
    (path / "vmstat").write_text(vmstat)
    return str(path)


@pytest.mark.parametrize(
    ("vmstat", "is_empty"),
    [
        ("nr_shmem 1\nnr_swapcached 0\nnr_x 2\n", True),
        ("nr_shmem 1\nnr_swapcached 7\n", False),
        ("nr_shmem 1\n", False),
        ("x_nr_swapcached 0\n", False),
    ],
)
def test_only_a_zero_proves_it(tmp_path: Path, vmstat: str, is_empty: bool) -> None:
    assert is_swap_cache_empty(make_proc(tmp_path, vmstat)) is is_empty


def test_without_the_refresh_a_zero_proves_nothing(tmp_path: Path) -> None:
    assert not is_swap_cache_empty(make_proc(tmp_path, "a\nnr_swapcached 0\n", False))
