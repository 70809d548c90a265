"""The maker of specimens, before it is started."""

from pathlib import Path

import pytest

from memlens.errors import Unsupported
from memlens.selftest import specimens


def test_without_proc_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specimens, "_PROC", str(tmp_path))
    with pytest.raises(Unsupported, match="not a proc file system"):
        specimens.SpecimenProcess("none")
