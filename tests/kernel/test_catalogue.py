"""Every kind of memory, page by page: memlens says what was built, without exception."""

from pathlib import Path

import pytest
from looking import ATTEMPTS, Look, as_far_as_known, differences, look_while_it_stands
from swapareas import Missing, Squeeze
from workloads.base import Entry, StateMoved
from workloads.catalogue import cases

ON_ZSWAP = [(entry, "zswap") for entry, kind in cases() if kind == "file"]
CASES = [
    pytest.param(entry, kind, id=f"{entry.name}-{kind}")
    for entry, kind in [*cases(), *ON_ZSWAP]
]


@pytest.mark.parametrize(("entry", "swap"), CASES, indirect=["swap"], scope="module")
def test_every_page_is_in_its_class(
    entry: Entry, swap: str, squeeze: Squeeze, tmp_path: Path
) -> None:
    for attempt in range(ATTEMPTS):
        try:
            with entry.open(swap, squeeze, tmp_path / str(attempt)) as workload:
                seen = look_while_it_stands(workload, Look())
                reports = [differences(*as_far_as_known(*pair)) for pair in seen]
            break
        except StateMoved:
            # Reclaim took what was built: build it again.  A wrong builder never gets through.
            if attempt == ATTEMPTS - 1:
                raise
        except Missing as missing:
            pytest.skip(str(missing))
    assert not any(reports), "\n".join(filter(None, reports))
