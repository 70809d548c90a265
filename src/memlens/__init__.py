"""
Where every page of a Linux process and of shared memory really is.

The names below are loaded when they are first used, so that ``import memlens`` costs
nothing and ``memlens --version`` imports no numpy.
"""

# Not typing.TYPE_CHECKING: typing is milliseconds of every ``memlens --version``.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from memlens.account.areaswap import AreaSwap
    from memlens.account.capture import map_process
    from memlens.account.cgroupmodel import CgroupList, CgroupPages
    from memlens.account.cgrouppages import list_cgroups, read_cgroup
    from memlens.account.cost import Cost
    from memlens.account.explain import PageExplanation, explain_page
    from memlens.account.facts import Missed
    from memlens.account.fileflags import count_file_flags
    from memlens.account.files import FileCache, FileScan
    from memlens.account.flags import count_process_flags
    from memlens.account.flagworkers import FlagCounts
    from memlens.account.frameflags import count_cgroup_flags, count_machine_flags
    from memlens.account.huge import map_huge
    from memlens.account.hugemodel import HugeResult
    from memlens.account.inventory import Inventory, list_shared_memory
    from memlens.account.ledger import (
        CgroupSwap,
        ProcessSwap,
        SwapLedger,
        ZswapUse,
        read_swap_ledger,
    )
    from memlens.account.model import (
        Kernel,
        MappingPages,
        Process,
        ProcessMap,
        UnknownRun,
        Words,
    )
    from memlens.account.sharedobject import Holder, SharedObject
    from memlens.account.sharedpages import read_sharing
    from memlens.account.sharing import (
        ProcessFilter,
        ProcessGroup,
        ProcessList,
        ProcessMemory,
        list_processes,
    )
    from memlens.account.sharingmodel import Sharing
    from memlens.errors import (
        AccessDenied,
        MemlensError,
        ParseError,
        ProcessGone,
        SnapshotError,
        UnknownName,
        Unsupported,
    )
    from memlens.kernel.probes import Features, probe_features
    from memlens.pages.classes import PageClass
    from memlens.pages.runs import Runs

__version__ = "0.1.0"

_HOMES = {
    "AccessDenied": "errors",
    "AreaSwap": "account.areaswap",
    "CgroupList": "account.cgroupmodel",
    "CgroupPages": "account.cgroupmodel",
    "CgroupSwap": "account.ledger",
    "Cost": "account.cost",
    "Features": "kernel.probes",
    "FileCache": "account.files",
    "FileScan": "account.files",
    "FlagCounts": "account.flagworkers",
    "Holder": "account.sharedobject",
    "HugeResult": "account.hugemodel",
    "Inventory": "account.inventory",
    "Kernel": "account.model",
    "MappingPages": "account.model",
    "MemlensError": "errors",
    "Missed": "account.facts",
    "PageClass": "pages.classes",
    "PageExplanation": "account.explain",
    "ParseError": "errors",
    "Process": "account.model",
    "ProcessFilter": "account.sharing",
    "ProcessGone": "errors",
    "ProcessGroup": "account.sharing",
    "ProcessList": "account.sharing",
    "ProcessMap": "account.model",
    "ProcessMemory": "account.sharing",
    "ProcessSwap": "account.ledger",
    "Runs": "pages.runs",
    "SharedObject": "account.sharedobject",
    "Sharing": "account.sharingmodel",
    "SnapshotError": "errors",
    "SwapLedger": "account.ledger",
    "UnknownRun": "account.model",
    "UnknownName": "errors",
    "Unsupported": "errors",
    "Words": "account.model",
    "ZswapUse": "account.ledger",
    "count_cgroup_flags": "account.frameflags",
    "count_file_flags": "account.fileflags",
    "count_machine_flags": "account.frameflags",
    "count_process_flags": "account.flags",
    "explain_page": "account.explain",
    "list_cgroups": "account.cgrouppages",
    "list_processes": "account.sharing",
    "list_shared_memory": "account.inventory",
    "map_huge": "account.huge",
    "map_process": "account.capture",
    "probe_features": "kernel.probes",
    "read_cgroup": "account.cgrouppages",
    "read_sharing": "account.sharedpages",
    "read_swap_ledger": "account.ledger",
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
    "FileScan",
    "FlagCounts",
    "Holder",
    "HugeResult",
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
    "count_cgroup_flags",
    "count_file_flags",
    "count_machine_flags",
    "count_process_flags",
    "explain_page",
    "list_cgroups",
    "list_processes",
    "list_shared_memory",
    "map_huge",
    "map_process",
    "probe_features",
    "read_cgroup",
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
