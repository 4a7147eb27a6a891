"""Imports point down only, torch stays in the engine's process, and policy stays pure. Read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.source import docstring, imports, modules

LEAVES = {"channel", "rmbgd", "errors", "events", "jobs", "clock", "beat", "exitcodes", "linelimit"}
BASE = LEAVES | {"config", "fsops"}

# Which rooms a room may use, besides itself. Above it is nothing that it knows.
MAY_USE: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "settings": LEAVES,
    "config": LEAVES | {"settings"},
    "fsops": LEAVES,
    "health": BASE,
    "imaging": BASE,
    "kernels": LEAVES,  # knows nothing of networks but what it is called with
    "models": LEAVES | {"kernels"},  # knows nothing of files in folders, threads or events
    "gpu": BASE | {"engine", "imaging", "models", "kernels"},  # of the engine what it answers and raises
    "engine": BASE | {"health", "imaging", "models", "kernels", "gpu"},  # the last three in the child alone
    "intake": BASE,
    "pipeline": BASE | {"engine", "imaging", "intake"},
    "mtbf": LEAVES,
    "crew": BASE,
    "engines": BASE | {"engine", "health", "models", "doctor"},  # of the models only where they lie
    "messages": BASE | {"crew", "engine"},
    "daemon": BASE | {"messages", "health", "imaging", "engine", "intake", "pipeline", "crew", "engines"},
    "oneshot": BASE | {"health", "imaging", "engine", "intake", "pipeline", "crew", "engines"},
    "bench": BASE | {"health", "imaging", "engine", "engines", "models", "pipeline", "oneshot"},
    "configdoc": BASE,
    "doctor": BASE | {"models", "health"},
    "verbs": BASE | {"daemon", "oneshot", "doctor", "health", "intake", "models", "configdoc", "mtbf", "bench"},
    "cli": BASE | {"verbs"},
    "__main__": {"cli"},
}

# torch's own rooms: models and kernels, what runs in the engine's child, the doctor's question in a process of its own.
TORCH_ROOMS = ("rmbgd.models.", "rmbgd.kernels.", "rmbgd.gpu.")
TORCH_MODULES = {
    "rmbgd.engine.torch_engine",
    "rmbgd.engine.torch_faults",
    "rmbgd.engine.torch_memory",
    "rmbgd.doctor.probe",
}

# Decisions. A module whose docstring begins with POLICY is one too.
POLICIES = {
    "rmbgd.intake.settle",
    "rmbgd.pipeline.batching",
    "rmbgd.engine.failover",
    "rmbgd.health.beats",
    "rmbgd.health.snapshot",
}
DOING = {"open", "Popen", "run", "Thread", "start", "print", "makedirs", "mkdir", "init", "set_num_threads", "connect"}
IMPURE = {"threading", "time", "os", "structlog", "torch", "subprocess", "socket", "signal", "random"}


def room(module: str) -> str:
    """The channel stands in the pipeline's room but below it: who feeds a line holds an end of one."""
    if module == "rmbgd.pipeline.channel":
        return "channel"
    return module.split(".")[1] if "." in module else module


@cache
def own_imports(module: str) -> frozenset[str]:
    return frozenset(name for name in imports(modules()[module]) if name.partition(".")[0] == "rmbgd")


def roots(module: str) -> set[str]:
    """The packages, ours or others', that a module imports, by first name."""
    return {name.partition(".")[0] for name in imports(modules()[module])}


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module: str) -> None:
    """A room uses only the rooms that the table allows it."""
    here = room(module)
    assert here in MAY_USE, f"a new room '{here}': say in MAY_USE what it may use"

    above = {name for name in own_imports(module) if room(name) not in MAY_USE[here] | {here}}
    assert set() == above


def test_no_module_imports_itself_by_a_detour() -> None:
    """Without cycles, every module can be read and tested with only what lies below it."""
    graph = {module: own_imports(module) - {module, "rmbgd"} for module in modules()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as cycle:
        pytest.fail(f"cycle: {' -> '.join(cycle.args[1])}")

    assert set(graph) <= set(order)


@pytest.mark.parametrize("module", sorted(modules()))
def test_torch_stays_in_its_room(module: str) -> None:
    """Models, the engine's child and the doctor's question; nothing else names torch."""
    if module.startswith(TORCH_ROOMS) or module in TORCH_MODULES:
        return

    assert not roots(module) & {"torch", "torchvision", "transformers", "triton"}


def test_only_the_child_knows_the_models() -> None:
    """The engine's rooms that run in the service's own process load no network."""
    knowing = {
        module
        for module in modules()
        if room(module) == "engine" and any(name.startswith(TORCH_ROOMS) for name in own_imports(module))
    }

    assert knowing <= {"rmbgd.engine.torch_engine"}


def test_models_know_neither_pictures_nor_threads() -> None:
    """A model is a function of tensors: no imaging library, no threads, no events."""
    strangers = {"PIL", "cv2", "simplejpeg", "threading", "watchdog", "structlog"}

    assert {} == {
        module: found for module in modules() if module.startswith(TORCH_ROOMS) and (found := roots(module) & strangers)
    }


@pytest.mark.parametrize(
    "module",
    sorted(POLICIES | {name for name, tree in modules().items() if docstring(tree).lstrip().startswith("POLICY")}),
)
def test_policy_is_pure(module: str) -> None:
    """A decision is a function of what it is given: it cannot sleep, look at the clock, log, or touch a device."""
    assert set() == roots(module) & IMPURE


def test_report_tool_and_vocabulary_need_only_the_standard_library() -> None:
    """Logs are read where nothing else is installed."""
    bare = {"rmbgd.events", "rmbgd.health.lines", "rmbgd.health.exits", "rmbgd.mtbf"} & set(modules())

    assert {} == {
        module: found for module in bare if (found := roots(module) - set(sys.stdlib_module_names) - {"rmbgd"})
    }


def test_daemon_imports_no_torch() -> None:
    """The service's own process starts quickly, and a crash in torch is a child's."""
    script = "import sys, rmbgd.daemon\nprint('torch' in sys.modules, 'transformers' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "False False\n" == done.stdout


def test_every_module_says_what_it_does() -> None:
    """A docstring first, in every file that holds anything."""
    assert [] == [name for name, tree in modules().items() if tree.body and not docstring(tree)]


@pytest.mark.parametrize("module", sorted(modules()))
def test_nothing_happens_at_import(module: str) -> None:
    """At the top of a module stand definitions and values: no thread, process, file or device is touched."""
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for statement in modules()[module].body
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.If, ast.Import, ast.ImportFrom))
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    }

    assert set() == called & DOING
