"""
Where every page of a Linux process and of shared memory really is.

The names below are loaded when they are first used, so that ``import memlens`` costs
nothing and ``memlens --version`` imports no numpy.
"""

# Not typing.TYPE_CHECKING: typing is milliseconds of every ``memlens --version``.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from memlens.account.capture import map_process
    from memlens.account.explain import PageExplanation, explain_page
    from memlens.account.facts import Missed
    from memlens.account.inventory import Inventory, list_shared_memory
    from memlens.account.ledger import (
        AreaSwap,
        CgroupSwap,
        ProcessSwap,
        SwapLedger,
        ZswapUse,
        read_swap_ledger,
    )
    from memlens.account.model import (
        Cost,
        Kernel,
        MappingPages,
        Process,
        ProcessMap,
        UnknownRun,
        Words,
    )
    from memlens.account.sharedobject import Holder, SharedObject
    from memlens.account.sharing import (
        ProcessFilter,
        ProcessGroup,
        ProcessList,
        ProcessMemory,
        list_processes,
    )
    from memlens.errors import (
        AccessDenied,
        MemlensError,
        ParseError,
        ProcessGone,
        SnapshotError,
        Unsupported,
    )
    from memlens.kernel.probes import Features, probe_features
    from memlens.pages.classes import PageClass
    from memlens.pages.runs import Runs

__version__ = "0.1.0"

_HOMES = {
    "AccessDenied": "errors",
    "AreaSwap": "account.ledger",
    "CgroupSwap": "account.ledger",
    "Cost": "account.model",
    "Features": "kernel.probes",
    "Holder": "account.sharedobject",
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
    "SnapshotError": "errors",
    "SwapLedger": "account.ledger",
    "UnknownRun": "account.model",
    "Unsupported": "errors",
    "Words": "account.model",
    "ZswapUse": "account.ledger",
    "explain_page": "account.explain",
    "list_processes": "account.sharing",
    "list_shared_memory": "account.inventory",
    "map_process": "account.capture",
    "probe_features": "kernel.probes",
    "read_swap_ledger": "account.ledger",
}

__all__ = [
    "AccessDenied",
    "AreaSwap",
    "CgroupSwap",
    "Cost",
    "Features",
    "Holder",
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
    "SnapshotError",
    "SwapLedger",
    "UnknownRun",
    "Unsupported",
    "Words",
    "ZswapUse",
    "explain_page",
    "list_processes",
    "list_shared_memory",
    "map_process",
    "probe_features",
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
