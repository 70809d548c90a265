"""
Where every page of a Linux process and of shared memory really is.

The names below are loaded when they are first used, so that ``import memlens`` costs
nothing and ``memlens --version`` imports no numpy.
"""

# Not typing.TYPE_CHECKING: typing is milliseconds of every ``memlens --version``.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from memlens.errors import AccessDenied as AccessDenied
    from memlens.errors import MemlensError as MemlensError
    from memlens.errors import ParseError as ParseError
    from memlens.errors import ProcessGone as ProcessGone
    from memlens.errors import SnapshotError as SnapshotError
    from memlens.errors import UnknownName as UnknownName
    from memlens.errors import Unsupported as Unsupported
    from memlens.pages.classes import PageClass as PageClass
    from memlens.pages.decode import Words as Words
    from memlens.pages.runs import Runs as Runs
    from memlens.physical.cgroup import list_cgroups as list_cgroups
    from memlens.physical.cgroup import read_cgroup as read_cgroup
    from memlens.physical.flagreport import count_flags as count_flags
    from memlens.physical.flagreport import list_flags as list_flags
    from memlens.physical.hugereport import map_huge as map_huge
    from memlens.physical.pagecache import read_files as read_files
    from memlens.physical.records import CgroupList as CgroupList
    from memlens.physical.records import CgroupPages as CgroupPages
    from memlens.physical.records import FileCache as FileCache
    from memlens.physical.records import FileReport as FileReport
    from memlens.physical.records import FlagReport as FlagReport
    from memlens.physical.records import HugeReport as HugeReport
    from memlens.report import Cost as Cost
    from memlens.report import Missed as Missed
    from memlens.residency.capture import map_process as map_process
    from memlens.residency.capture import map_processes as map_processes
    from memlens.residency.records import Kernel as Kernel
    from memlens.residency.records import MappingPages as MappingPages
    from memlens.residency.records import PageExplanation as PageExplanation
    from memlens.residency.records import Process as Process
    from memlens.residency.records import ProcessMap as ProcessMap
    from memlens.residency.records import UnknownRun as UnknownRun
    from memlens.residency.steps import explain_page as explain_page
    from memlens.selftest.doctor import probe_features as probe_features
    from memlens.selftest.records import Features as Features
    from memlens.sharing.frames import read_sharing as read_sharing
    from memlens.sharing.processes import ProcessFilter as ProcessFilter
    from memlens.sharing.processes import list_processes as list_processes
    from memlens.sharing.records import ProcessGroup as ProcessGroup
    from memlens.sharing.records import ProcessList as ProcessList
    from memlens.sharing.records import ProcessMemory as ProcessMemory
    from memlens.sharing.records import Sharing as Sharing
    from memlens.shm.inventory import list_shared_memory as list_shared_memory
    from memlens.shm.records import Holder as Holder
    from memlens.shm.records import Inventory as Inventory
    from memlens.shm.records import SharedObject as SharedObject
    from memlens.swap.ledger import read_swap_ledger as read_swap_ledger
    from memlens.swap.records import AreaSwap as AreaSwap
    from memlens.swap.records import CgroupSwap as CgroupSwap
    from memlens.swap.records import ProcessSwap as ProcessSwap
    from memlens.swap.records import SwapLedger as SwapLedger
    from memlens.swap.records import ZswapUse as ZswapUse

__version__ = "0.1.0"

# The public names of each module.
_HOMES = {
    "errors": "AccessDenied MemlensError ParseError ProcessGone SnapshotError UnknownName"
    " Unsupported",
    "pages.classes": "PageClass",
    "pages.decode": "Words",
    "pages.runs": "Runs",
    "physical.cgroup": "list_cgroups read_cgroup",
    "physical.flagreport": "count_flags list_flags",
    "physical.hugereport": "map_huge",
    "physical.pagecache": "read_files",
    "physical.records": "CgroupList CgroupPages FileCache FileReport FlagReport HugeReport",
    "report": "Cost Missed",
    "residency.capture": "map_process map_processes",
    "residency.records": "Kernel MappingPages PageExplanation Process ProcessMap UnknownRun",
    "residency.steps": "explain_page",
    "selftest.doctor": "probe_features",
    "selftest.records": "Features",
    "sharing.frames": "read_sharing",
    "sharing.processes": "ProcessFilter list_processes",
    "sharing.records": "ProcessGroup ProcessList ProcessMemory Sharing",
    "shm.inventory": "list_shared_memory",
    "shm.records": "Holder Inventory SharedObject",
    "swap.ledger": "read_swap_ledger",
    "swap.records": "AreaSwap CgroupSwap ProcessSwap SwapLedger ZswapUse",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'memlens' has no attribute {name!r}")
    found: object = getattr(import_module(f"memlens.{home}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
