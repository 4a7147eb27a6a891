"""Imports point down only, torch stays in the engine's process, and policy stays pure. Read from the source itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.support.source import PACKAGE, calls, imports, modules

LEAVES = {"errors", "events", "clock", "naming", "paths", "page", "resampling", "wording"}
BASE = LEAVES | {"heartbeat", "fs", "mounts", "folder_lock", "access_rights"}

# Which packages a package may use, besides itself; there are no exceptions.
MAY_USE: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    **dict.fromkeys(("heartbeat", "fs", "mounts", "access_rights"), LEAVES),
    "folder_lock": LEAVES | {"fs"},
    "config": BASE,
    "store": BASE,
    "telemetry": BASE | {"config"},
    "imaging": BASE | {"config"},
    "deliver": BASE | {"config", "imaging"},
    "models": BASE,
    "mtbf": {"errors", "events", "fs", "page", "wording"},
    "report": BASE | {"config", "store", "imaging", "telemetry"},
    "evaluate": BASE | {"config", "imaging", "report", "deliver"},
    "publish": BASE | {"config", "store"},
    "engine": BASE | {"config", "imaging", "models", "telemetry"},
    "backends": {"errors", "fs", "resampling", "engine", "imaging", "models"},
    "sequence": BASE | {"config", "store", "imaging"},
    "film": BASE | {"config", "imaging", "deliver", "engine", "sequence"},
    "pipeline": BASE | {"config", "store", "imaging", "deliver", "engine", "publish", "sequence", "film"},
    "intake": BASE | {"config", "store", "imaging", "publish", "pipeline", "sequence"},
    "fleet": BASE | {"config", "store", "publish", "engine", "pipeline", "intake", "sequence"},
    "service": BASE
    | {"config", "store", "telemetry", "imaging", "publish", "engine", "pipeline", "intake", "fleet", "sequence"},
    "doctor": BASE | {"config", "store", "telemetry", "models", "engine", "intake", "service", "fleet"},
    "bench": BASE | {"config", "store", "imaging", "models", "engine", "pipeline", "service"},
    "cli": BASE
    | {"config", "store", "telemetry", "models", "mtbf", "deliver", "report", "evaluate", "service", "doctor", "bench"}
    | {"fleet"},
    "testing": BASE | {"config", "engine", "backends"},  # nothing in the product imports it
    "__main__": {"cli"},
}

# Of the engine, the child process may use the values that cross to it and what both sides of a self-test need.
ENGINE_FOR_BACKENDS = {"rmbgd.engine.types", "rmbgd.engine.golden_image", "rmbgd.engine.selftest"}

TORCH_PACKAGES = ("rmbgd.models.", "rmbgd.backends.")
TORCH_MODULES = {"rmbgd.engine.device_query"}  # inside a function, in a process of its own
TORCH = {"torch", "torchvision", "transformers", "triton"}

DOING = {"open", "Popen", "run", "Thread", "start", "print", "makedirs", "mkdir", "init", "set_num_threads", "connect"}
IMPURE = {"threading", "time", "os", "structlog", "torch", "subprocess", "socket", "signal", "random"}


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else module


@cache
def own_imports(module: str) -> frozenset[str]:
    found = imports(modules()[module])
    return frozenset(name for name in found if name.partition(".")[0] == "rmbgd" and name != "rmbgd")


def roots(module: str) -> set[str]:
    """The packages, ours or others', that a module imports, by first name."""
    return {name.partition(".")[0] for name in imports(modules()[module])}


@pytest.mark.parametrize("module", sorted(name for name in modules() if name != "rmbgd"))
def test_imports_point_down(module: str) -> None:
    here = package(module)
    assert here in MAY_USE, f"a new package '{here}': say in MAY_USE what it may use"
    assert set() == {name for name in own_imports(module) if package(name) not in MAY_USE[here] | {here}}


def test_the_table_itself_has_no_cycle() -> None:
    above = {name: used - LEAVES for name, used in MAY_USE.items() if name not in LEAVES}
    assert set(above) <= set(TopologicalSorter(above).static_order())


def test_no_module_imports_itself_by_a_detour() -> None:
    """So every module can be read and tested with only what lies below it. CycleError names the detour."""
    graph = {module: own_imports(module) - {module} for module in modules()}
    assert set(graph) <= set(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", sorted(modules()))
def test_torch_stays_in_the_childs_packages(module: str) -> None:
    if module.startswith((*TORCH_PACKAGES, "rmbgd.testing.")) or module in TORCH_MODULES:
        return
    assert not roots(module) & TORCH


def test_backends_know_of_the_engine_only_what_crosses_to_them() -> None:
    """Values, the golden image and its self-test: nothing that starts, judges or repairs a process."""
    used = {name for module in modules() if package(module) == "backends" for name in own_imports(module)}
    assert set() == {name for name in used if package(name) == "engine"} - ENGINE_FOR_BACKENDS


def test_models_know_neither_images_nor_threads() -> None:
    strangers = {"PIL", "cv2", "simplejpeg", "threading", "watchdog", "structlog"}
    models = {module: roots(module) for module in modules() if module.startswith("rmbgd.models.")}
    assert {} == {module: found for module, used in models.items() if (found := used & strangers)}


@pytest.mark.parametrize(
    "module", sorted(name for name, tree in modules().items() if (ast.get_docstring(tree) or "").startswith("POLICY"))
)
def test_policy_is_pure(module: str) -> None:
    """A decision is a function of what it is given: it cannot sleep, look at the clock, log, or touch a device."""
    assert set() == roots(module) & IMPURE


def test_report_tool_and_vocabulary_need_only_the_standard_library() -> None:
    bare = {"rmbgd.events", "rmbgd.telemetry.jsonl", "rmbgd.telemetry.journal", "rmbgd.telemetry.messages"}
    bare |= {"rmbgd.service.exit_recorder", "rmbgd.service.start_record"}
    bare |= {name for name in modules() if package(name) == "mtbf"} | {"rmbgd.page", "rmbgd.wording"}
    # the extras rmbgd[report] and rmbgd[systemd], imported inside a function
    optional = {"rmbgd.page": {"jinja2"}, "rmbgd.telemetry.journal": {"systemd"}}
    known = sys.stdlib_module_names | {"rmbgd"}
    assert optional == {module: found for module in bare if (found := roots(module) - known)}


@pytest.mark.integration
def test_daemon_imports_no_torch() -> None:
    script = "import sys, rmbgd.service.daemon\nprint('torch' in sys.modules, 'transformers' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "False False\n" == done.stdout


def test_every_module_says_what_it_does() -> None:
    assert [] == [name for name, tree in modules().items() if tree.body and not ast.get_docstring(tree)]


@pytest.mark.parametrize("module", sorted(modules()))
def test_nothing_happens_at_import(module: str) -> None:
    """At the top of a module stand definitions and values: no thread, process, file or device is touched."""
    passive = (ast.FunctionDef, ast.ClassDef, ast.If, ast.Import, ast.ImportFrom)
    run = [statement for statement in modules()[module].body if not isinstance(statement, passive)]
    assert set() == {name for statement in run for name, _ in calls(statement)} & DOING


# --- shape: budgets, names, one of each mechanism

REPOSITORY = PACKAGE.parent
# Lines and modules that a package may have; a change that needs more raises its row, and says why in its commit.
BUDGET: dict[str, tuple[int, int]] = {
    "": (1900, 14),
    "backends": (2490, 20),
    "bench": (740, 4),
    "cli": (4100, 31),
    "deliver": (1830, 12),
    "config": (1930, 7),
    "doctor": (860, 5),
    "engine": (4340, 22),
    "imaging": (3050, 18),
    "intake": (2780, 15),
    "models": (4760, 26),
    "mtbf": (2210, 10),
    "pipeline": (2720, 12),
    "publish": (1840, 8),
    "service": (3570, 21),
    "report": (250, 2),
    "evaluate": (1030, 7),
    "store": (2270, 13),
    "telemetry": (920, 6),
    "testing": (710, 6),
    "fleet": (5830, 33),
    "sequence": (1400, 9),
    "film": (1400, 5),
}
MODULES, LINES, TEST_LINES = 306, 52_750, 50_800
FILE_LINES, SETTINGS_LINES = 500, 760
FORBIDDEN = (
    "attendant|station|lane|keeper|seats?|teller|telling|standins?|crew|leftovers|waitingroom|proving|examined|whoever|"
    "is told|are told|his turn|stands in"
)
# Names that are data: an option, a setting, units of settings, and keys of the MTBF report.
IMAGES_BY_ANOTHER_NAME = re.compile(r"--pictures|\"pictures\"|trial_pictures")
MAY_RENAME = {"fs.py", "store/claims.py", "publish/temporary.py", "service/oneshot.py", "doctor/folders.py"}


@cache
def files() -> dict[str, list[str]]:
    """Lines of every file of the package, by its path below it."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8").splitlines() for path in paths}


def lines_like(pattern: str, *, flags: int = 0) -> list[str]:
    """`file:number: line` of every line of the package that the pattern is found in."""
    numbered = ((name, number, line) for name, lines in files().items() for number, line in enumerate(lines, 1))
    return [f"{name}:{number}: {line}" for name, number, line in numbered if re.search(pattern, line, flags)]


def test_each_package_keeps_its_budget() -> None:
    sizes: dict[str, Counter[str]] = {}
    for name, lines in files().items():
        size = sizes.setdefault(name.rpartition("/")[0].partition("/")[0], Counter())
        size.update(lines=len(lines), modules=not name.endswith("__init__.py"))
    over = {
        name: dict(size)
        for name, size in sizes.items()
        if name not in BUDGET or size["lines"] > BUDGET[name][0] or size["modules"] > BUDGET[name][1]
    }
    assert (over, BUDGET.keys() - sizes.keys()) == ({}, set())
    assert sum(size["modules"] for size in sizes.values()) <= MODULES
    assert sum(size["lines"] for size in sizes.values()) <= LINES
    tests = (path.read_text(encoding="utf-8").count("\n") for path in (REPOSITORY / "tests").rglob("*.py"))
    assert sum(tests) <= TEST_LINES


def test_no_file_is_too_long() -> None:
    limits = {"config/settings.py": SETTINGS_LINES}
    assert {} == {name: len(lines) for name, lines in files().items() if len(lines) > limits.get(name, FILE_LINES)}


def test_class_names_stand_for_one_thing() -> None:
    names = Counter(node.name for tree in modules().values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert [] == [name for name, count in names.items() if count > 1]


def test_protocols_are_few_and_typing_has_no_imports_of_its_own() -> None:
    """A protocol needs two real implementations; an import for types alone marks a border in the wrong place."""
    assert len(lines_like(r"^class \w+\(.*Protocol")) <= 12
    assert [] == lines_like("TYPE_CHECKING")


def test_words_are_the_fields() -> None:
    assert [] == lines_like(rf"\b({FORBIDDEN})\b", flags=re.IGNORECASE)
    assert [] == [line for line in lines_like(r"\buntold\b") if not line.startswith("store/")]
    assert [] == [line for line in lines_like(r"\bpictures?\b") if not IMAGES_BY_ANOTHER_NAME.search(line)]


def test_one_place_for_each_mechanism() -> None:
    renames = {line.partition(":")[0] for line in lines_like(r"os\.(rename|replace)\(")}
    doublings = {line.partition(":")[0] for line in lines_like(r"\b2(\.0)? ?\*\* ?|2 \* delay")}
    assert renames <= MAY_RENAME
    assert {name for name in doublings if not name.startswith(("backends/", "models/", "mtbf/"))} <= {"clock.py"}
    assert len(lines_like(r"def (segment|faulted)\b")) <= 4


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 140
    assert all((REPOSITORY / name).is_file() for name in ("LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"))
