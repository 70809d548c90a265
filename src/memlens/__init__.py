"""
Where every page of a Linux process and of shared memory really is.

The names below are loaded when they are first used, so that ``import memlens`` costs
nothing and ``memlens --version`` imports no numpy.
"""

# Not typing.TYPE_CHECKING: typing is milliseconds of every ``memlens --version``.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from memlens.errors import (
        AccessDenied,
        MemlensError,
        ParseError,
        ProcessGone,
        SnapshotError,
        UnknownName,
        Unsupported,
    )
    from memlens.pages.classes import PageClass
    from memlens.pages.decode import Words
    from memlens.pages.runs import Runs
    from memlens.physical.cgroup import list_cgroups, read_cgroup
    from memlens.physical.flagreport import count_flags, list_flags
    from memlens.physical.hugereport import map_huge
    from memlens.physical.pagecache import read_files
    from memlens.physical.records import (
        CgroupList,
        CgroupPages,
        FileCache,
        FileReport,
        FlagReport,
        HugeReport,
    )
    from memlens.report import Cost, Missed
    from memlens.residency.capture import map_process, map_processes
    from memlens.residency.records import (
        Kernel,
        MappingPages,
        PageExplanation,
        Process,
        ProcessMap,
        UnknownRun,
    )
    from memlens.residency.steps import explain_page
    from memlens.selftest.doctor import probe_features
    from memlens.selftest.records import Features
    from memlens.sharing.frames import read_sharing
    from memlens.sharing.processes import ProcessFilter, list_processes
    from memlens.sharing.records import ProcessGroup, ProcessList, ProcessMemory, Sharing
    from memlens.shm.inventory import list_shared_memory
    from memlens.shm.records import Holder, Inventory, SharedObject
    from memlens.swap.ledger import read_swap_ledger
    from memlens.swap.records import AreaSwap, CgroupSwap, ProcessSwap, SwapLedger, ZswapUse

__version__ = "0.1.0"

_HOMES = {
    "AccessDenied": "errors",
    "AreaSwap": "swap.records",
    "CgroupList": "physical.records",
    "CgroupPages": "physical.records",
    "CgroupSwap": "swap.records",
    "Cost": "report",
    "Features": "selftest.records",
    "FileCache": "physical.records",
    "FileReport": "physical.records",
    "FlagReport": "physical.records",
    "Holder": "shm.records",
    "HugeReport": "physical.records",
    "Inventory": "shm.records",
    "Kernel": "residency.records",
    "MappingPages": "residency.records",
    "MemlensError": "errors",
    "Missed": "report",
    "PageClass": "pages.classes",
    "PageExplanation": "residency.records",
    "ParseError": "errors",
    "Process": "residency.records",
    "ProcessFilter": "sharing.processes",
    "ProcessGone": "errors",
    "ProcessGroup": "sharing.records",
    "ProcessList": "sharing.records",
    "ProcessMap": "residency.records",
    "ProcessMemory": "sharing.records",
    "ProcessSwap": "swap.records",
    "Runs": "pages.runs",
    "SharedObject": "shm.records",
    "Sharing": "sharing.records",
    "SnapshotError": "errors",
    "SwapLedger": "swap.records",
    "UnknownName": "errors",
    "UnknownRun": "residency.records",
    "Unsupported": "errors",
    "Words": "pages.decode",
    "ZswapUse": "swap.records",
    "count_flags": "physical.flagreport",
    "explain_page": "residency.steps",
    "list_cgroups": "physical.cgroup",
    "list_flags": "physical.flagreport",
    "list_processes": "sharing.processes",
    "list_shared_memory": "shm.inventory",
    "map_huge": "physical.hugereport",
    "map_process": "residency.capture",
    "map_processes": "residency.capture",
    "probe_features": "selftest.doctor",
    "read_cgroup": "physical.cgroup",
    "read_files": "physical.pagecache",
    "read_sharing": "sharing.frames",
    "read_swap_ledger": "swap.ledger",
}

__all__ = [
    "AccessDenied",
    "AreaSwap",
    "CgroupList",
    "CgroupPages",
    "CgroupSwap",
    "Cost",
    "Features",
    "FileCache",
    "FileReport",
    "FlagReport",
    "Holder",
    "HugeReport",
    "Inventory",
    "Kernel",
    "MappingPages",
    "MemlensError",
    "Missed",
    "PageClass",
    "PageExplanation",
    "ParseError",
    "Process",
    "ProcessFilter",
    "ProcessGone",
    "ProcessGroup",
    "ProcessList",
    "ProcessMap",
    "ProcessMemory",
    "ProcessSwap",
    "Runs",
    "SharedObject",
    "Sharing",
    "SnapshotError",
    "SwapLedger",
    "UnknownName",
    "UnknownRun",
    "Unsupported",
    "Words",
    "ZswapUse",
    "count_flags",
    "explain_page",
    "list_cgroups",
    "list_flags",
    "list_processes",
    "list_shared_memory",
    "map_huge",
    "map_process",
    "map_processes",
    "probe_features",
    "read_cgroup",
    "read_files",
    "read_sharing",
    "read_swap_ledger",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'memlens' has no attribute {name!r}")
    found: object = getattr(import_module(f"memlens.{home}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
