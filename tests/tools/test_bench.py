"""The benches: each subject runs; sections of bench gpu fail alone, keep the budget, compare right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools import bench
from tools.benches import filters
from tools.gpubench import accuracy, checks, networks, report, sections
from tools.gpubench.plan import QUICK, Answer, Plan, answers

REPOSITORY = Path(__file__).parents[2]
GPU_ON_CPU = ("gpu", "--device", "cpu", "--quick")


def run(*words: str | Path, tool: str = "tools.bench") -> tuple[int, str, Any]:
    """(exit status, what it printed, its line of JSON)."""
    command = [sys.executable, "-m", tool, *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.strip(), done.stderr[-2000:]
    return done.returncode, done.stdout, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.integration
def test_filters_are_compared_on_any_folder_of_images_and_masks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "gt").mkdir()
    y, x = np.mgrid[:300, :400]
    alpha = np.clip((90 - np.hypot(y - 150, x - 250)) / 20, 0, 1)[..., None]
    pixels = alpha * (200, 60, 40) + (1 - alpha) * (90, 120, 140)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / "ball.png")
    Image.fromarray((255 * alpha[..., 0]).astype(np.uint8)).save(tmp_path / "gt" / "ball.png")
    code, _, found = run("filters", "--quick", "--folder", tmp_path)
    assert (code, found["now"]) == (0, "box")
    assert {"bilinear", "box", "lanczos", "rembg"} <= found["ways"].keys()
    box = found["ways"]["box"]
    assert box["iou_gain"] == [0, 0, 0]  # it is what the others are compared with
    assert box["means"]["photographs"][0] > 0.7


@pytest.mark.slow
@pytest.mark.integration
def test_frames_of_a_film_are_measured_through_the_service() -> None:
    code, _, found = run("frames", "--quick")
    assert (code, len(found)) == (0, 4)
    assert [each["out_of_order"] for way, each in found.items() if way != "images"] == [0, 0, 0]
    assert all(each["steady_ms"] > 0 for way, each in found.items() if "steady" in way)


@pytest.mark.slow
@pytest.mark.integration
def test_films_are_measured_through_the_service() -> None:
    code, _, found = run("films", "--quick", "--height", "90")
    assert (code, set(found)) == (0, {"prores4444", "vp9", "h264", "png"})
    assert all(each["frames_per_s"] > 0 and each["processor_ms"] > 0 for each in found.values())


@pytest.mark.slow
@pytest.mark.integration
def test_the_temporal_filter_is_compared_with_frames_one_by_one() -> None:
    code, _, found = run("temporal", "--quick")
    assert (code, len(found["sequences"])) == (0, 1)
    assert {"steady", "ahead", "median", "ema", "frozen"} == found["change"].keys()


@pytest.mark.slow
@pytest.mark.integration
def test_refining_is_measured_on_any_folder_of_images_and_soft_masks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "gt").mkdir()
    y, x = np.mgrid[:600, :800]
    alpha = np.clip((190 - np.hypot(y - 300, x - 450)) / 6 + 0.5, 0, 1)[..., None]
    pixels = alpha * (200, 60, 40) + (1 - alpha) * (90, 120, 140)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / "ball.png")
    Image.fromarray((255 * alpha[..., 0]).astype(np.uint8)).save(tmp_path / "gt" / "ball.png")
    code, _, found = run("refine", "--quick", "--folder", tmp_path)
    assert (code, found["refined"]) == (0, 1)
    assert all(found["images"]["ball"][error] < -10 for error in ("sad", "mse", "gradient"))
    assert found["milliseconds_a_megapixel"]["mean"] > 0


def test_an_interval_holds_the_mean_of_paired_gains() -> None:
    gains = np.random.default_rng(1).normal(0.02, 0.1, 400)
    mean, low, high = filters.interval(gains)
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.645 * 0.1 / 20, rel=0.15)


def test_masks_of_three_levels_mean_ignore_by_the_middle_one(tmp_path: Path) -> None:
    for folder in ("photos", "gt"):
        (tmp_path / folder).mkdir()
    levels = np.array([[0, 128, 255, 255]], np.uint8)
    for name, mask in (("a", levels), ("b", np.minimum(levels, 254))):
        Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(tmp_path / "photos" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "gt" / f"{name}.png")
    ignoring, soft = filters.photographs(tmp_path)
    assert filters.judged(ignoring, np.array([[0, 1, 1, 1]], np.float32)) == (1, 0)
    assert filters.judged(ignoring, np.array([[1, 0, 1, 0]], np.float32)) == pytest.approx((1 / 3, 2 / 3))
    assert soft.counted.all()


@pytest.mark.integration
def test_pipeline_compares_ours_with_the_common_way() -> None:
    code, _, found = run("pipeline", "--quick")
    rows = found["rows"]
    assert (code, len(rows)) == (0, 7)
    assert all(row["images_per_second"] > 0 and row["output_bytes"] > 0 for row in rows)
    mine = [row for row in rows if row["way"].startswith("rmbgd")]
    assert all(row["times_faster"] > 0 for row in mine)
    assert all(row["times_the_bytes"] < 1.15 for row in mine if "PNG" in row["way"])


@pytest.mark.integration
def test_service_is_measured_as_it_runs(tmp_path: Path) -> None:
    code, shown, found = run("service", "--quick", "--out", tmp_path)
    assert all(found[name] > 0 for name in ("ready_s", "latency_p95_s", "claims_per_s", "finished_per_s"))
    assert (code, found) == (0, json.loads((tmp_path / "bench_service.json").read_text()))
    assert (tmp_path / "bench_service.txt").read_text() in shown


@pytest.mark.integration
def test_race_compares_runtimes_and_none_takes_more_cores_than_it_may() -> None:
    code, _, found = run("race", "--quick", "--threads", "1")
    assert (code, found["u2netp failed"]) == (0, {})
    rows = found["u2netp"]
    assert set(rows) >= {"torch float32", "torch bfloat16"}
    assert {name: row["cores"] for name, row in rows.items() if row["cores"] > 1.2} == {}
    assert all(row["error"] < 3 and row["peak_mb"] > 100 for row in rows.values())


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("section", [name for name in sections.SECTIONS if name != sections.PREPARE])
def test_gpu_section_runs_to_its_end(tmp_path: Path, section: str) -> None:
    _, _, found = run(*GPU_ON_CPU, "--out", tmp_path, "--budget", "800", "--only", section)
    assert (found["errors"], set(found["answers"])) == ({}, {sections.PREPARE, section})
    rows = found["answers"][section].get("rows", [])
    here = "TensorRT needs a GPU" if section == "tensorrt" else "the engine offers"
    assert all(here in row["error"] for row in rows if "error" in row)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_failing_section_loses_itself_alone(tmp_path: Path) -> None:
    no_weights = ("--checkpoint", tmp_path / "nowhere")
    code, shown, found = run(*GPU_ON_CPU, "--out", tmp_path, *no_weights, "--only", "naive,ceilings")
    assert (code, {"naive"}) == (1, set(found["errors"]))
    assert "nowhere" in found["errors"]["naive"]
    assert "float32_tflops" in found["answers"]["ceilings"]
    assert "naive FAILED" in shown


@pytest.mark.integration
def test_section_beyond_its_time_is_ended_and_none_begins_when_the_budget_is_used_up(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), str(tmp_path), "cpu", **QUICK)
    assert "did not end within 0 s" == sections.run_section("ceilings", plan, tmp_path, 0.05)
    assert {} == answers(str(tmp_path))
    errors = sections.run_all(plan, ["naive"], tmp_path, budget=1.0)["errors"]
    assert errors == dict.fromkeys(["prepare", "naive"], "not begun: the time budget was used up")


def test_rows_of_a_section_that_was_ended_are_kept(tmp_path: Path) -> None:
    answer = Answer(tmp_path / "answer-naive.json")
    answer.row({"step": "a"})
    assert {"naive": {"rows": [{"step": "a"}]}} == answers(str(tmp_path))
    with answer.or_error({"step": "b"}, ValueError):
        raise ValueError("no\nmore")
    assert {"step": "b", "error": "no"} == answers(str(tmp_path))["naive"]["rows"][1]


def test_unknown_section_or_subject_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["gpu", "--out", str(tmp_path / "out"), "--only", "speed"])
    assert (2, False) == (ended.value.code, (tmp_path / "out").exists())
    assert bench.main(["speed"]) == 2


@pytest.mark.slow
def test_counted_operations_are_those_of_the_paper_budget() -> None:
    """0.321 tera multiply-adds, two operations each: what the rooflines in the documents rest on."""
    assert networks.flops("swin_v1_t", 1024) == pytest.approx(2 * 321e9, rel=0.005)


def test_equal_logits_have_no_error_what_is_off_is_counted_and_the_gate_is_relative() -> None:
    logits = np.linspace(-6, 6, 4096, dtype=np.float32).reshape(1, 64, 64)
    row = accuracy.judged(accuracy.compared(logits, logits), "float16", {"relative": 0.0, "mean": 0.0})
    figures = [row[name] for name in ("relative", "mean", "p999", "far", "overlap", "well", "gate")]
    assert figures == [0.0, 0.0, 0.0, 0.0, 1.0, True, True]
    for relative, gate in ((9e-5, True), (11e-5, False)):
        row = accuracy.judged({"relative": relative, "mean": 0.0}, "float16", {"relative": 1e-4, "mean": 0.0})
        assert (True, gate) == (row["well"], row["gate"])
    reference = np.repeat(np.uint8([255, 0]), 50)
    found = accuracy.alphas(np.append(reference[:-1], np.uint8(9)), reference)
    assert (0.09, 0.01, 1.0) == (found["mean"], found["far"], found["overlap"])


@pytest.mark.integration
def test_image_crosses_parent_and_worker_and_leaves_out_what_runs_at_the_start() -> None:
    names = set(run("--images", "2", tool="tools.trace_image")[2]["modules"][0])
    assert {"intake/watcher.py", "pipeline/infer.py", "backends/cpu/openvino_network.py", "store/outbox.py"} <= names
    assert not names & {"cli/main.py", "config/layout.py", "engine/selftest.py"}


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_gpu_check_keeps_what_it_found(tmp_path: Path) -> None:
    command = ["tools/gpu_check.sh", str(tmp_path / "out"), "--device", "cpu", "--quick", "--only", "smoke,accuracy"]
    environment = os.environ | {"PYTHON": sys.executable, "SECONDS_ALL": "600", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found.keys() == {"machine.txt", "bench_gpu.json", "bench_gpu.txt", "bench_gpu.log"}
    assert "Python.h" in found["machine.txt"]
    assert "Targets for one H200" in found["bench_gpu.txt"]
    assert found["bench_gpu.txt"] in done.stdout
    answers = json.loads(done.stdout.splitlines()[-1])["answers"]
    assert {"prepare", "smoke", "accuracy"} == set(answers)
    assert "the same bytes" in {row["found"] for row in answers["smoke"]["rows"]}
    rows = answers["accuracy"]["rows"]
    assert all(row["relative"] <= 0.06 for row in rows if "relative" in row)  # of logits, which are not all alike
    engine = [row for row in rows if row["step"].startswith("engine, float32")]
    assert engine[0]["step"] == "engine, float32, batches of 1"
    assert all(row["mean"] <= 0.01 and row["overlap"] >= 0.9999 for row in engine)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_gpu_check_that_is_killed_has_lost_nothing(tmp_path: Path) -> None:
    """The rows of the section that was running are in the file, too."""
    command = [
        sys.executable,
        "-m",
        "tools.bench",
        *GPU_ON_CPU,
        "--out",
        str(tmp_path),
        "--only",
        "first_image,waterfall",
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True)
    path, until = tmp_path / "bench_gpu.json", time.monotonic() + 200
    try:
        while not (path.exists() and "first_image" in json.loads(path.read_text())["answers"]):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert json.loads(path.read_text())["answers"].keys() >= {"prepare", "first_image"}


@pytest.mark.integration
def test_nothing_begins_after_an_essential_section_failed(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path), str(tmp_path), "cuda:99", **QUICK)
    found = sections.run_all(plan, ["smoke", "ceilings"], tmp_path, budget=120.0)
    assert {found["errors"][name] for name in ("smoke", "ceilings")} == {"not begun: prepare failed"}


def test_tests_that_failed_are_named_and_what_kernels_need_decides() -> None:
    rows = [{"outcome": "PASSED", "test": "a"}, {"outcome": "FAILED", "test": "b::test_window_attention[float16-6]"}]
    found = report.outcomes({"right_kernels": {"rows": rows, "kernels": "off"}}, "right_kernels")
    assert found == {"passed": 1, "failed": 1, "which": "b::test_window_attention[float16-6]", "kernels": "off"}
    said = "FAILED x.py::test_y[1] - AssertionError: no\nPASSED x.py::test_z\n3 passed"
    assert checks.OUTCOME.findall(said) == [
        ("FAILED", "x.py::test_y[1] - AssertionError: no"),
        ("PASSED", "x.py::test_z"),
    ]


@pytest.mark.slow
@pytest.mark.integration
def test_files_of_an_image_are_measured() -> None:
    code, text, found = run("deliver", "--quick")
    (row,) = found.values()
    assert (code, len(row)) == (0, 11)
    assert all(name in text for name in row)
