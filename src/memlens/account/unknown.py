"""Why pages of a mapping stay unknown, in words."""

from dataclasses import replace

import numpy as np

from memlens.account.model import MappingPages, UnknownRun
from memlens.account.settle import Settler
from memlens.account.verdicts import is_object_class
from memlens.kernel.maps import Mapping
from memlens.pages.classes import REASONS, PageClass, Reason, Verdict
from memlens.pages.runs import Runs, merge_runs, select_runs
from memlens.units import format_size


def explain_unknown(
    settler: Settler, mapping: Mapping, runs: Runs, refusal: str
) -> tuple[UnknownRun, ...]:
    """
    Return the runs whose verdict is a ``Reason``, with its text.

    :param runs: runs of verdicts.
    :param refusal: why the object could not be asked.
    """
    found = []
    for first, pages, value in select_runs(runs, runs.value >= Verdict.FIRST_REASON):
        found.append(UnknownRun(first, pages, reason_text(settler, mapping, value, refusal)))
    return tuple(found)


def reason_text(settler: Settler, mapping: Mapping, value: int, refusal: str) -> str:
    """Return a reason, with what smaps can still say of a mapping that cannot be asked."""
    reason = REASONS[value - Verdict.FIRST_REASON]
    if value == Reason.NOT_OPENED:
        reason = refusal or reason
    if value not in (Reason.NOT_OPENED, Reason.NOT_HONEST, Reason.HIDDEN):
        return reason
    pages = settler.pages(mapping, "Swap")
    if pages is None:
        return reason
    swap = format_size(pages * settler.page_size_bytes)
    return f"{reason} (smaps counts {swap} of swap in this mapping)"


def without_object(result: MappingPages) -> MappingPages:
    """Return a mapping that kept changing without what its object was asked."""
    text = REASONS[Reason.MAPPING_CHANGED - Verdict.FIRST_REASON]
    is_asked = np.array([is_object_class(value) for _, _, value in result.runs], bool)
    unknown = tuple(
        UnknownRun(first, pages, text)
        for first, pages, value in result.runs
        if is_object_class(value)
    )
    value = np.where(is_asked, np.uint8(PageClass.UNKNOWN), result.runs.value)
    return replace(
        result,
        runs=merge_runs(Runs(result.runs.first, result.runs.pages, value)),
        unknown=tuple(sorted((*result.unknown, *unknown), key=lambda run: run.first)),
        notes=(*result.notes, "kept changing during the scan"),
    )
