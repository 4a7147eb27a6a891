"""tools/bench_gpu.py on the CPU: every section runs to its end, failures lose themselves alone, the budget holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tools import bench_gpu
from tools.gpubench import accuracy, naive
from tools.gpubench.networks import golden_row
from tools.gpubench.plan import TINY, Answer, Plan, answers, load, recipe_folder
from tools.gpubench.roofline import flops
from tools.gpubench.weights import ours, plain, write

REPOSITORY = Path(__file__).parents[2]
SECTIONS = [name for name in bench_gpu.SECTIONS if name != bench_gpu.PREPARE]


def run(out: Path, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tools.bench_gpu", "--device", "cpu", "--tiny", "--out", str(out), *more]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """One run of everything."""
    out = tmp_path_factory.mktemp("whole")
    return *run(out, "--budget", "1500"), out


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("section", SECTIONS)
def test_section_runs_to_its_end(section: str, whole: tuple[int, str, Path]) -> None:
    """It has an answer, no error, and no row that could not be measured but for what a CPU does not offer."""
    result = json.loads((whole[2] / "bench_gpu.json").read_text())

    assert section not in result["errors"]
    assert result["answers"][section]
    errors = {row["error"] for row in result["answers"][section].get("rows", []) if "error" in row}
    assert all("the engine offers" in error for error in errors)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_run_ends_with_targets_and_one_json_line(whole: tuple[int, str, Path]) -> None:
    """Exit 0; the tables are on the screen and in a file."""
    code, shown, out = whole

    assert code == 0
    assert json.loads(shown.splitlines()[-1])["errors"] == {}
    assert "Targets for one H200" in (out / "bench_gpu.txt").read_text()
    assert (out / "bench_gpu.txt").read_text() in shown


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_engine_agrees_with_the_plain_network(whole: tuple[int, str, Path]) -> None:
    """Alpha through arena, child and folded network is the plain float32 network's, to a rounding."""
    rows = json.loads((whole[2] / "bench_gpu.json").read_text())["answers"]["accuracy"]["rows"]
    engine = [row for row in rows if row["step"].startswith("engine, float32")]

    assert {"engine, float32, batches of 1"} <= {row["step"] for row in engine}
    assert all(row["mean"] <= 0.01 and row["overlap"] >= 0.9999 for row in engine)


# --- failures and the budget


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_failing_section_loses_itself_alone(tmp_path: Path) -> None:
    """Without weights the first sections fail, with their reason; the report is written all the same; exit 1."""
    code, shown = run(tmp_path, "--checkpoint", str(tmp_path / "nowhere"), "--only", "naive,ceilings")
    result = json.loads((tmp_path / "bench_gpu.json").read_text())

    assert code == 1
    assert {"naive"} == set(result["errors"])
    assert "nowhere" in result["errors"]["naive"]
    assert "float32_tflops" in result["answers"]["ceilings"]
    assert "naive FAILED" in shown


def plan_in(tmp_path: Path, **more: Any) -> Plan:
    return Plan(**{**TINY, "work": str(tmp_path), "device": "cpu", **more})


def test_no_section_begins_when_the_budget_is_used_up(tmp_path: Path) -> None:
    """It is said of each."""
    result = bench_gpu.run_all(plan_in(tmp_path), ["naive"], tmp_path, budget=1.0)

    assert {"prepare", "naive"} == set(result["errors"])
    assert {"not begun: the time budget was used up"} == set(result["errors"].values())


def test_section_beyond_its_time_is_ended(tmp_path: Path) -> None:
    """And what it had found is kept, of which there is nothing here."""
    assert "did not end within 0 s" == bench_gpu.run_section("ceilings", plan_in(tmp_path), tmp_path, 0.05)
    assert {} == answers(str(tmp_path))


def test_rows_of_a_section_that_was_ended_are_kept(tmp_path: Path) -> None:
    """Each row is on the disk before the next is measured."""
    answer = Answer(tmp_path / "answer-naive.json")
    answer.row("rows", {"step": "a"})
    assert {"naive": {"rows": [{"step": "a"}]}} == answers(str(tmp_path))
    answer.row("rows", {"step": "b"})
    assert 2 == len(answers(str(tmp_path))["naive"]["rows"])


def test_unknown_section_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2, before anything is written."""
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--out", str(tmp_path / "out"), "--only", "speed"])
    with pytest.raises(SystemExit) as ended:
        bench_gpu.main()

    assert (2, False) == (ended.value.code, (tmp_path / "out").exists())


def test_plan_survives_its_file(tmp_path: Path) -> None:
    """Sections read what the run wrote."""
    plan = plan_in(tmp_path)

    assert plan == load(plan.save())


def test_named_recipe_must_be_there(tmp_path: Path) -> None:
    """Found nowhere is one thing, a wrong name another."""
    with pytest.raises(SystemExit, match=r"no recipe\.py there"):
        recipe_folder(str(tmp_path))


# --- what the sections compare


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The small backbone with weights drawn by rule, as on a machine that holds only the repository."""
    plan = plan_in(tmp_path_factory.mktemp("weights"))
    assert "no recipe at hand" in write(plan, "swin_v1_t")
    return plan


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_plain_and_ours_compute_the_same(lite: Plan) -> None:
    """The naive way, with its replaced deformable convolution, and our network: one function, from one file."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs, mine = plain(lite, "swin_v1_t")[0](x), ours(lite, "swin_v1_t", torch.float32)(x)

    assert theirs.std() > 0.1
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


def test_counted_operations_are_those_of_the_paper_budget() -> None:
    """1.267 and 0.321 tera multiply-adds, two operations each: what the rooflines in the documents rest on."""
    assert flops("swin_v1_t", 1024) == pytest.approx(2 * 321e9, rel=0.005)


def test_naive_normalisation_is_that_of_the_training(lite: Plan) -> None:
    """An image of the mean colour is about zero, white is above two."""
    from PIL import Image

    mean = naive.normalised(Image.new("RGB", (10, 10), (124, 116, 104)), 32, torch)
    white = naive.normalised(Image.new("RGB", (10, 10), "white"), 32, torch)

    assert mean.shape == (1, 3, 32, 32)
    assert mean.abs().max() < 0.01
    assert white.min() > 2


@pytest.mark.parametrize(
    ("wrong", "well"),
    [(0.0, True), (9e-4, True), (2e-3, False), (float("nan"), False)],
)
def test_golden_is_held_to_its_limit(wrong: float, well: bool) -> None:
    """1e-3 of any logit in float32; a figure that is no number fails."""
    expected = torch.linspace(-4, 4, 64)
    logits = expected.clone()
    logits[3] += wrong

    assert well == golden_row("g", "float32", logits, expected)["well"]


def test_equal_logits_have_no_error() -> None:
    """And pass every limit and the gate."""
    logits = np.linspace(-6, 6, 4096, dtype=np.float32).reshape(1, 64, 64)
    row = accuracy.judged(accuracy.compared(logits, logits), "float16", {"relative": 0.0, "mean": 0.0})

    assert (0.0, 0.0, 0.0, 0.0, 1.0, True, True) == tuple(
        row[name] for name in ("relative", "mean", "p999", "far", "overlap", "well", "gate")
    )


@pytest.mark.parametrize(("factor", "gate"), [(0.9, True), (1.1, False)])
def test_gate_is_relative(factor: float, gate: bool) -> None:
    """Better than plain autocast passes, worse fails, whatever the absolute limits say."""
    row = accuracy.judged({"relative": factor * 1e-4, "mean": 0.0}, "float16", {"relative": 1e-4, "mean": 0.0})

    assert (True, gate) == (row["well"], row["gate"])


def test_alpha_that_is_off_is_counted() -> None:
    """One pixel in a hundred, nine steps off, at the edge of a square."""
    reference = np.zeros((1, 10, 10), np.uint8)
    reference[0, :5] = 255
    alpha = reference.copy()
    alpha[0, 9, 9] = 9
    found = accuracy.alphas(alpha, reference)

    assert (0.09, 0.01, 1.0) == (found["mean"], found["far"], found["overlap"])


# --- the whole session


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_session_runs_tests_then_measures(tmp_path: Path) -> None:
    """One command: what the tests said, then the tables, in one folder of few files; arguments go to the benchmark."""
    command = ["tools/gpu_session.sh", str(tmp_path / "out"), "--device", "cpu", "--tiny", "--only", "ceilings"]
    environment = {**os.environ, "SECONDS_TESTS": "300", "SECONDS_ALL": "600", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    assert "skipped" in (tmp_path / "out" / "tests.txt").read_text()
    assert {"prepare", "ceilings"} == set(json.loads(done.stdout.splitlines()[-1])["answers"])
    assert {"tests.txt", "bench_gpu.json", "bench_gpu.txt", "bench_gpu.log"} == {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_session_is_a_shell_script_that_parses() -> None:
    """Read, not run."""
    subprocess.run(["sh", "-n", "tools/gpu_session.sh"], cwd=REPOSITORY, check=True)
