"""Every kind of memory, page by page: memlens says what was built, without exception."""

import pytest

from tests.kernel.support.verdicts import (
    Look,
    ReportsOf,
    as_far_as_known,
    differences,
    look_while_it_stands,
)
from tests.kernel.workloads.base import Entry, Workload
from tests.kernel.workloads.catalogue import cases

ON_ZSWAP = [(entry, "zswap") for entry, kind in cases() if kind == "file"]
CASES = [
    pytest.param(entry, kind, id=f"{entry.name}-{kind}")
    for entry, kind in [*cases(), *ON_ZSWAP]
]


@pytest.mark.parametrize(("entry", "swap"), CASES, indirect=["swap"], scope="module")
def test_every_page_is_in_its_class(entry: Entry, reports_of: ReportsOf) -> None:
    def look(workload: Workload) -> list[str]:
        seen = look_while_it_stands(workload, Look())
        return [differences(made, as_far_as_known(made, found)) for made, found in seen]

    reports = reports_of(entry, look)
    assert not reports, reports
