"""Correctness on the card: the tests that need a GPU, within their time and without losing what failed; memcheck."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tools.gpubench.networks import write_weights
from tools.gpubench.plan import ROOT, Answer, Plan

KERNELS = "tests/backends/cuda/test_kernels_cuda.py"
DECIDE = "test_window_attention", "test_deformable_pyramid"  # without these two nothing is gained by kernels
PYTEST = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "default", "--tb=short", "-rA", "--maxfail=15"]
OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED) (.*)$", re.MULTILINE)
LAST_WORDS = 15.0  # s that pytest has to print what failed, once it was interrupted


def kernels(plan: Plan, answer: Answer) -> None:
    """Each kernel against float64 in float16. Says whether the other sections are to do without kernels."""
    run(plan, answer, [KERNELS, "-k", "float16 and not bfloat16"], seconds=60.0)
    failed = [row["test"] for row in answer.rows() if row["outcome"] in ("FAILED", "ERROR")]
    answer.put(kernels="off" if any(name in test for test in failed for name in DECIDE) else "auto")
    if failed:
        raise AssertionError(f"{len(failed)} tests of kernels failed: {failed[0]}")


def tests(plan: Plan, answer: Answer) -> None:
    """All that are marked gpu, for as long as there is time."""
    found = subprocess.run(
        ["grep", "-rlE", "mark\\.gpu", "tests", "--include=*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    run(plan, answer, sorted(found.stdout.split()), seconds=plan.test_seconds)
    if failed := [row["test"] for row in answer.rows() if row["outcome"] in ("FAILED", "ERROR")]:
        raise AssertionError(f"{len(failed)} tests failed: {failed[0]}")


def run(plan: Plan, answer: Answer, chosen: list[str], *, seconds: float) -> None:
    """A row per test that came to an end. The output goes to tests.txt as it comes."""
    path = Path(plan.out, "tests.txt")
    if not (plan.is_gpu and importlib.util.find_spec("pytest")):
        answer.put(left_out="no GPU" if not plan.is_gpu else "pytest is not installed")
        return
    with path.open("ab") as stream:
        began = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-m", "gpu", *PYTEST, *chosen], cwd=ROOT, stdout=stream, stderr=stream
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            # SIGTERM would end pytest without a word of what failed.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
            answer.put(cut_short=f"after {seconds:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    said = path.read_bytes()[began:].decode(errors="replace")
    for outcome, test in OUTCOME.findall(said):
        answer.row({"outcome": outcome, "test": test.partition(" - ")[0]})
    answer.put(status=process.returncode)


def sanitizer(plan: Plan, answer: Answer) -> None:
    """compute-sanitizer's memcheck over one image of the small network, where that program is."""
    program = shutil.which("compute-sanitizer")
    if program is None or not plan.is_gpu:
        answer.put(left_out="no compute-sanitizer" if plan.is_gpu else "no GPU")
        return
    small = replace(plan, work=str(Path(plan.work, "small")), backbone="swin_v1_t", side=256)
    write_weights(small)
    one_image = [sys.executable, "-m", "tools.gpubench.profiled", json.dumps(asdict(small))]
    command = [program, "--tool", "memcheck", "--error-exitcode", "9", *one_image]
    with Path(plan.out, "sanitizer.txt").open("wb") as stream:
        done = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=stream, env=os.environ, check=False)
    answer.put(status=done.returncode)
    if done.returncode:
        raise AssertionError(f"compute-sanitizer ended with {done.returncode}; see sanitizer.txt")
