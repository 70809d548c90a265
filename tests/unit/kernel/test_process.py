"""How a process is gone: by what a /proc of plain files says."""

from pathlib import Path

import pytest

from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Host

STAT = "7 (a) R 1 1 1 0 -1 64 " + "0 " * 10 + "1 0 99 0"
LINE = "00400000-00401000 r--p 00000000 00:00 0 \n"


@pytest.mark.parametrize(
    ("state", "maps", "what"),
    [
        ("R", LINE, "executed another program"),
        ("R", "", "ended"),  # on its way out, not a zombie yet
        ("Z", "", "ended"),
    ],
)
def test_gone_by_another_program_or_for_good(
    tmp_path: Path, state: str, maps: str, what: str
) -> None:
    place = tmp_path / "7"
    place.mkdir()
    (place / "stat").write_text(STAT)
    (place / "maps").write_text(LINE)
    with ProcessDir(7, Host(str(tmp_path))) as process:
        (place / "stat").write_text(STAT.replace(" R ", f" {state} "))
        (place / "maps").write_text(maps)
        assert str(process.gone_error()).startswith(f"process 7 {what} during the scan")
