"""The simulated fleet against queues whose waits are known, aggregates against single images, and the options."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tools.capacity.__main__ import fewest, main
from tools.capacity.fleet import Faults, Fleet, by_image, in_aggregate, outages
from tools.capacity.load import BUSY_SHARE, HOUR, BadInput, Curve, Device, Times, read_logs

NONE = Times(0.0)
INSTANT = Device({1: NONE}, 8)
FLEET = Fleet(4, 2, Times(0.012, 0.5), Times(0.13, 0.5), Device.of_rate(10.0, 8))


def poisson(rate: float, seconds: float, seed: int = 1) -> np.ndarray:
    return Curve("mean", seconds, rate, peak=rate).arrivals(np.random.default_rng(seed))


def erlang_c(servers: int, load: float) -> float:
    """Probability of a wait in M/M/c; load in Erlang."""
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def batch_means_bound(values: np.ndarray) -> float:
    """Four standard errors of a mean; waits that follow each other are alike, so that means of 20 parts count."""
    return 4 * float(np.std([part.mean() for part in np.array_split(values, 20)], ddof=1)) / math.sqrt(20)


def test_cores_alone_are_erlangs_queue() -> None:
    """M/M/4 at a utilisation of 0.8: exponential is the measured distribution here."""
    exponential = Times.measured(np.random.default_rng(5).exponential(0.1, 20_000).tolist())
    rate, servers = 0.8 * 4 / exponential.mean, 4
    outcome = by_image(Fleet(1, servers, exponential, NONE, INSTANT), poisson(rate, 40_000 / rate), seed=3)
    wait = erlang_c(servers, 0.8 * servers) * exponential.mean / (servers - 0.8 * servers)
    bound = batch_means_bound(outcome.latency)
    assert bound < 0.25 * wait
    assert outcome.latency.mean() == pytest.approx(wait + exponential.mean, abs=bound)


def test_a_device_alone_is_a_queue_with_constant_service() -> None:
    """M/D/1 without batches (Pollaczek and Khinchine): the wait is load / 2 (1 - load) of a service."""
    fleet = Fleet(1, 64, NONE, NONE, Device.of_rate(10.0, 1))
    outcome = by_image(fleet, poisson(7.0, 5000.0), seed=3)
    bound = batch_means_bound(outcome.latency)
    assert bound < 0.2 * outcome.latency.mean()
    assert outcome.latency.mean() == pytest.approx(0.1 + 0.1 * 0.7 / (2 * 0.3), abs=bound)


def test_batches_make_a_device_faster() -> None:
    device = Device({1: Times(0.1), 8: Times(0.2)}, 8)
    one = by_image(Fleet(1, 8, NONE, NONE, replace(device, largest=1)), np.zeros(400))
    eight = by_image(Fleet(1, 8, NONE, NONE, device), np.zeros(400))
    assert one.drained == pytest.approx(40.0)
    assert eight.drained == pytest.approx(400 / device.rate(), rel=0.05)
    assert device.size_at(5.0) == 1
    assert device.size_at(39.0) == 8
    assert device.seconds(4) == pytest.approx(0.1 + 0.1 * 3 / 7)
    assert device.seconds(16) == pytest.approx(0.4)


@pytest.mark.parametrize("faults", [Faults(), Faults(mtbf=600, mttr=60, gpu_mtbf=500, gpu_mttr=60, slower=4)])
@pytest.mark.parametrize("rate", [46.0, 55.0])
def test_aggregates_agree_with_single_images(rate: float, faults: Faults) -> None:
    """A fleet that is overloaded for five minutes; both see the same outages. Otherwise the random numbers differ."""
    curve, fleet = Curve("mean", 300.0, rate), replace(FLEET, faults=faults)
    single = by_image(fleet, curve.arrivals(np.random.default_rng(1)))
    whole = in_aggregate(fleet, curve)
    for percent in (50, 95, 99):
        assert whole.percentile(percent) == pytest.approx(single.percentile(percent), rel=0.12, abs=fleet.resolution)
    assert whole.drained == pytest.approx(single.drained, rel=0.05)
    assert whole.backlog.max() == pytest.approx(single.backlog.max(), rel=0.15)
    assert whole.redone == pytest.approx(single.redone, rel=0.1)


def test_aggregates_agree_without_a_backlog_up_to_their_resolution() -> None:
    curve = Curve("mean", 600.0, 36.0)
    single, whole = by_image(FLEET, curve.arrivals(np.random.default_rng(1))), in_aggregate(FLEET, curve)
    assert 0 <= single.percentile(95) - whole.percentile(95) < FLEET.resolution


def test_the_backfill_takes_what_new_images_leave() -> None:
    arrivals = poisson(20.0, 200.0)
    alone, beside = by_image(FLEET, arrivals), by_image(FLEET, arrivals, backfill=3000)
    assert beside.percentile(95) < alone.percentile(95) + FLEET.resolution
    assert beside.backfilled == pytest.approx((arrivals.size + 3000) / (4 * FLEET.rate()), rel=0.15)
    curve = Curve("mean", 200.0, 20.0)
    whole = in_aggregate(FLEET, curve, backfill=3000)
    assert whole.backfilled == pytest.approx(beside.backfilled, rel=0.1)
    assert whole.backfilled <= whole.drained
    assert whole.percentile(95) == pytest.approx(in_aggregate(FLEET, curve).percentile(95), rel=0.05)


def test_lost_images_come_back_after_their_lease_and_every_image_is_done() -> None:
    fleet = replace(FLEET, faults=Faults(mtbf=40.0, mttr=10.0, lease=30.0))
    outcome = by_image(fleet, poisson(15.0, 300.0), backfill=500)
    assert outcome.redone > 0
    assert np.isfinite(outcome.latency).all()
    assert outcome.backlog[-1] == outcome.backfill[-1] == 0
    assert (outcome.latency > 30.0).sum() > 0


def test_outages_have_their_means_and_are_the_same_again() -> None:
    faults = Faults(mtbf=100.0, mttr=5.0)
    one, two = (list(islice(outages(faults, 7, 0), 4000)) for _ in range(2))
    assert one == two
    assert np.mean(one, axis=0) == pytest.approx([100.0, 5.0], rel=0.08)


def test_arrivals_follow_the_day() -> None:
    day = Curve("day", 24 * HOUR, 9.3, 30.0)
    at = day.arrivals(np.random.default_rng(1))
    assert at.size == pytest.approx(9.3 * 24 * HOUR, rel=0.01)
    counts, edges = np.histogram(at, 48, (0, 24 * HOUR))
    assert np.allclose(counts, day.rate((edges[1:] + edges[:-1]) / 2) * 1800, rtol=0.1)
    assert day.highest() == pytest.approx(30.0, rel=0.01)
    assert Curve("week", 168 * HOUR).images() == pytest.approx(93 * 168 * HOUR, rel=0.01)
    sales = Curve("sales", 24 * HOUR)
    assert sales.rate(np.array([19 * HOUR]))[0] == pytest.approx(
        3 * Curve("day", 24 * HOUR).rate(np.array([19 * HOUR]))[0]
    )


def test_a_day_that_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match=f"{93 / BUSY_SHARE:.0f}"):
        Curve("day", 24 * HOUR, 93, 900)


def test_lognormal_times_have_their_mean_and_variation() -> None:
    drawn = Times(0.2, 0.6).draw(np.random.default_rng(1), 200_000)
    assert drawn.mean() == pytest.approx(0.2, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(0.6, rel=0.03)


def test_the_fewest_are_found() -> None:
    for wanted in range(1, 40):
        assert fewest(lambda count, wanted=wanted: count >= wanted, 1, 39) == wanted
    assert fewest(lambda _: False, 1, 39) is None


def log_of(path: Path, images: int = 300, decode: float = 10.0, encode: float = 30.0) -> Path:
    """As of one worker on one processor that did nothing else."""
    lines = ['{"event": "service.ready"}', "not JSON, and no image"]
    for number in range(images):
        spent = {"wait": 0.0, "decode": decode, "engine": 8.0, "encode": encode, "total": decode + encode + 8.0}
        time = f"2026-01-01T00:{number * 0.041 // 60:02.0f}:{number * 0.041 % 60:06.3f}Z"
        lines.append(json.dumps({"event": "image.done", "time": time, "batch": 8, "milliseconds": spent}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_log_gives_the_times_of_each_stage(tmp_path: Path) -> None:
    run = read_logs([log_of(tmp_path / "a.jsonl")])
    assert run.images == 300
    assert (run.decode.mean, run.encode.mean) == pytest.approx((0.01, 0.03))
    assert (run.device.largest, run.device.seconds(8)) == pytest.approx((8, 0.008))
    assert run.busy == pytest.approx(300 * 0.041)


def test_validate_compares_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run is tested with what the first shows to be missing: 9 ms of an image."""
    words = ["validate", "--json", "--processors", "1", "--calibrate"]
    for name, images in (("a", 300), ("b", 200)):
        words += ["--log", str(log_of(tmp_path / name, images)), "--cpu-seconds", str(0.05 * images)]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["runs"]
    assert first["overhead_ms"] == second["overhead_ms"] == pytest.approx(9.0, abs=0.1)
    assert found["ratio_lowest"] == second["ratio"] == pytest.approx(1.0, rel=0.05)


def test_validate_takes_times_of_a_quiet_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Threads waited in the run itself: its times are double, the processor seconds are not."""
    busy, quiet = log_of(tmp_path / "busy", decode=20.0, encode=60.0), log_of(tmp_path / "quiet", 50)
    words = ["validate", "--json", "--log", str(busy), str(busy), "--cpu-seconds", str(600 * 0.041)]
    assert main([*words, "--times", str(quiet)]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["workers"], run["images"], run["stage_times_scaled_by"]) == (2, 600, 1.0)
    assert run["ratio"] == pytest.approx(1.0, rel=0.05)


def test_validate_shortens_stages_that_waited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["validate", "--json", "--processors", "1", "--calibrate", "--times", str(log_of(tmp_path / "times", 50))]
    for name, images in (("a", 300), ("b", 200)):
        words += ["--log", str(log_of(tmp_path / name, images)), "--cpu-seconds", str(0.0205 * images)]
    assert main(words) == 0
    for run in json.loads(capsys.readouterr().out)["runs"]:
        assert run["stage_times_scaled_by"] == pytest.approx(0.5)
        assert run["overhead_ms"] == 0
        assert run["ratio"] == pytest.approx(1.0, rel=0.05)


def test_plan_is_the_same_again_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--arrivals", "mean", "day", "--speed", "26", "--seed", "4", "--mtbf", "50", "--json"]
    texts = []
    for name in ("a.svg", "b.png"):
        assert main([*words, "--plot", str(tmp_path / name)]) == 0
        texts.append(capsys.readouterr().out)
        assert (tmp_path / name).stat().st_size > 1000
    assert texts[0] == texts[1]
    mean, day = json.loads(texts[0])["fleets"]
    assert mean["gpus"] >= 93 / 26
    assert mean["p95"] <= 10 >= day["p95"]
    assert day["gpus"] > mean["gpus"]
    assert day["cores"] >= day["gpus"]


def test_plan_simulates_few_images_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(log_of(tmp_path / "log"))
    assert main(["plan", "--arrivals", "peak", "--hours", "0.005", "--log", log, "--p95", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["fleets"]
    assert row["resolution_seconds"] == 0
    assert row["cores"] >= 300 * 0.04 * 0.8
    assert main(["plan", "--arrivals", "mean", "--hours", "0.01", "--kind", "1600-png6", "--p95", "0.1"]) == 1
    assert "out of reach" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan --p95 0", "'0' is no number above 0"),
        ("plan --backfill -1", "'-1' is no whole number from 0 on"),
        ("plan --speed fast", "'fast' is no number above 0"),
        ("plan --arrivals noon", "noon"),
        ("plan --plot a.gif", "ends in .svg or .png"),
        ("plan --sale-hours 22 18", "the earlier first"),
        ("plan --arrivals day --peak 900", "cannot have a peak of 900/s"),
        ("plan --log /nowhere/a", "/nowhere/a: No such file"),
        ("plan --plot /nowhere/a.svg --arrivals mean --speed 190 --hours 0.01", "/nowhere/a.svg"),
        ("validate --log /dev/null --cpu-seconds 1", "no image.done"),
        ("validate --log a --log b --cpu-seconds 1", "give one for each"),
        ("", "command"),
    ],
)
def test_wrong_options_get_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def test_a_broken_log_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"event": "image.done", "milliseconds": {"engine": "x"}}\n')
    with pytest.raises(BadInput, match=r"log:1: not an image.done"):
        read_logs([path])
    path.write_text('\n{"event": "image.done", \n')
    with pytest.raises(BadInput, match=r"log:2: not JSON"):
        read_logs([path])
