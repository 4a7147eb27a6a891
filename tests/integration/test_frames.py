"""Frames of a film through the real service: in order whatever order they arrive in, steady, and none lost."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import CampaignPart
from tests.support.films import film
from tests.support.images import samples
from tests.support.service import ServiceUnderTest

pytestmark = pytest.mark.integration

FRAMES = {"kind": "frames", "frame_wait": 0.5, "sequence_quiet": 30.0}
STEADY = FRAMES | {"temporal": "steady"}


def frame(number: int, *, take: int = 0, width: int = 48, height: int = 32) -> bytes:
    """A square that walks over noise; the engine of the tests takes green for alpha."""
    rng = np.random.default_rng(1000 * take + number)
    image = rng.integers(0, 40, (height, width, 3), np.uint8)
    left = (2 * number) % (width - 12)
    image[8:24, left : left + 12] = (80, 200 + number % 50, 60)
    return bytes(cv2.imencode(".png", image)[1])


def numbers_done(service: ServiceUnderTest, sequence: str) -> list[int]:
    return [each["frame"] for each in service.named("image.done", sequence=sequence)]


def test_frames_leave_in_order_whatever_order_they_arrive_in(tmp_path: Path) -> None:
    numbers = list(range(80))
    random.Random(5).shuffle(numbers)
    with ServiceUnderTest(tmp_path, folder=STEADY | {"frame_wait": 30.0}) as service:
        service.drop_all({f"take/frame_{number:04}.png": frame(number) for number in numbers})
        service.wait_for_endings(80)
        assert numbers_done(service, "take/frame_") == list(range(80))
        assert service.named("sequence.gap") == []
        service.drop("take/sequence.end", b"")
        done = service.wait_for("sequence.done")
        service.wait(lambda: not (service.input / "take/sequence.end").exists(), "the marker to be used up")
    assert (done["frames"], done["first"], done["last"], done["missing"], done["why"]) == (80, 0, 79, 0, "marker")
    assert [each["state"] for each in service.named("sequence.started")] == ["new"]
    assert len(list((service.output / "take").iterdir())) == 80


def test_a_missing_frame_is_waited_for_then_passed_over_and_published_when_it_comes(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=STEADY) as service:
        service.drop_all({f"f{number}.png": frame(number) for number in (0, 1, 2, 4, 5)})
        gap = service.wait_for("sequence.gap")
        service.wait_for_endings(5)
        service.drop("f3.png", frame(3))
        late = service.wait_for("image.done", path="f3.png")
        service.drop("f004.png", frame(44))
        twice = service.wait_for("image.done", path="f004.png")
        service.drop("poster.png", frame(9))
        still = service.wait_for("image.done", path="poster.png")
    assert (gap["first"], gap["last"], gap["frames"], gap["why"]) == (3, 3, 1, "waited")
    assert numbers_done(service, "f")[:5] == [0, 1, 2, 4, 5]
    assert (late["notes"], twice["notes"], still["notes"]) == (["late_frame"], ["doubled_number"], ["no_number"])


def test_sequences_do_not_hold_each_other_up(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=STEADY | {"frame_wait": 600.0}) as service:
        service.drop_all({f"a/{number}.png": frame(number) for number in (0, 2, 3)})
        service.drop_all({f"b/{number}.png": frame(number, take=1) for number in range(6)})
        service.wait_for_endings(7)
        assert numbers_done(service, "b/") == list(range(6))
        assert numbers_done(service, "a/") == [0]
        service.drop("a/1.png", frame(1))
        service.wait_for_endings(10)
    assert numbers_done(service, "a/") == [0, 1, 2, 3]


def test_the_filter_goes_on_over_a_restart(tmp_path: Path) -> None:
    data = {f"{number}.png": frame(number) for number in range(8)}
    whole = ServiceUnderTest(tmp_path / "whole", folder=STEADY)
    with whole:
        whole.serve_all(data)
    cut = ServiceUnderTest(tmp_path / "cut", folder=STEADY)
    with cut:
        cut.serve_all({name: content for name, content in data.items() if int(name[0]) < 4})
        cut.restart()
        cut.serve_all({name: content for name, content in data.items() if int(name[0]) >= 4})
    assert [each["state"] for each in cut.named("sequence.started")] == ["new", "resumed"]
    for name in data:
        assert (cut.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_a_damaged_state_begins_anew_and_says_so(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=STEADY) as service:
        service.serve_all({f"{number}.png": frame(number) for number in range(3)})
        assert service.stop() == 0
        for state in (service.state / "sequences").iterdir():
            state.write_bytes(b"\xff" * state.stat().st_size)
        service.start()
        service.serve_all({f"{number}.png": frame(number) for number in range(3, 5)})
        started = service.named("sequence.started")[-1]
    assert (started["state"], started["why"], started["frame"]) == ("reset", "damaged", 3)


def test_a_finished_sequence_goes_on_or_begins_again(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=STEADY) as service:
        service.serve_all({f"{number}.png": frame(number) for number in range(3)})
        service.drop("sequence.end", b"")
        service.wait_for("sequence.done")
        service.serve_all({f"{number}.png": frame(number) for number in range(3, 5)})
        service.drop("sequence.end", b"")
        service.wait_for("sequence.done", count=2)
        service.serve_all({f"{number}.png": frame(number, take=7) for number in range(2)})
    started = service.named("sequence.started")
    assert [(each["frame"], each["state"]) for each in started] == [(0, "new"), (3, "resumed"), (0, "reset")]
    assert [each.get("notes") for each in service.named("image.done")] == [None] * 7


def test_a_frame_that_is_no_image_leaves_the_others_in_order(tmp_path: Path) -> None:
    data: dict[str, bytes] = {f"{number}.png": frame(number) for number in range(6)} | {"3.png": b"no image" * 50}
    with ServiceUnderTest(tmp_path, folder=STEADY) as service:
        service.drop_all(data)
        service.wait_for_endings(6)
        sizes = {"6.png": frame(6, width=64), "7.png": frame(7, width=64)}
        service.serve_all(sizes)
    assert numbers_done(service, ".") == [0, 1, 2, 4, 5, 6, 7]
    assert [each["frame"] for each in service.named("image.failed")] == [3]


def test_bad_frames_stop_nothing_and_each_has_its_answer(tmp_path: Path) -> None:
    far = 2**31 + 5
    good = {f"a/{number:04}.png": frame(number) for number in (0, 1, 2, 5, 6)}
    apart = {"a/00005.png": frame(5, take=1), "a/poster.png": frame(9), "a/cover1a2b.png": frame(3)}
    wide = {f"a/{number:04}.png": frame(number, width=96, height=20) for number in (7, 8)}
    huge = {f"far/f{far}.png": frame(0), f"far/f{far + 1}.png": frame(1), f"far/f{'9' * 40}.png": frame(2)}
    bad = {"a/0009.png": b"no image", "a/0010.png": frame(10)[:-60], "a/0011.png": b""}
    after = {"a/0012.png": frame(12)}
    settings = {"intake": {"incomplete_timeout": 1.0}}
    with ServiceUnderTest(tmp_path, folder=STEADY, settings=settings) as service:
        service.drop_all(good | apart | wide | huge | bad | after)
        service.wait_for_endings(len(good | apart | wide | huge | bad | after))
        for name in ("a", "far"):
            service.drop(f"{name}/sequence.end", b"")
        service.wait(lambda: len(service.named("sequence.done")) >= 2, "the ends")
        done = {each["path"]: each for each in service.named("image.done")}
        assert set(done) == set(good | apart | wide | huge | after)
        reasons = {each["path"]: each["reason"] for each in service.named("image.failed")}
        assert reasons == {"a/0009.png": "unidentified", "a/0010.png": "truncated", "a/0011.png": "empty"}
        notes = {path: each["notes"] for path, each in done.items() if "notes" in each}
        [doubled] = notes.keys() & {"a/0005.png", "a/00005.png"}
        assert notes == {
            doubled: ["doubled_number"],
            "a/poster.png": ["no_number"],
            f"far/f{'9' * 40}.png": ["no_number"],
        }
        order = [each["frame"] for each in service.named("image.done", sequence="a/") if "notes" not in each]
        assert order == [0, 1, 2, 5, 6, 7, 8, 12]
        assert [each["frame"] for each in service.named("image.done", sequence="far/f") if "notes" not in each] == [
            far, far + 1
        ]  # fmt: skip
        gaps = [(each["first"], each["last"]) for each in service.named("sequence.gap", sequence="a/")]
        assert gaps[0] == (3, 4)


def kill_at_random(service: ServiceUnderTest, rng: random.Random, outcomes: int, kills: int) -> None:
    for _ in range(kills):
        wanted = min(outcomes, service.ended_count() + rng.randrange(1, max(2, outcomes // kills)))
        service.wait_for_endings(wanted)
        service.kill()
        service.start()


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_in_order_and_none_lost_with_kills(tmp_path: Path, campaign_part: CampaignPart) -> None:
    """Shuffled within the window, the service killed again and again: the outputs are those of an unharmed run."""
    count, kills = campaign_part.count(10_000, 400), campaign_part.count(20, 4)
    rng = random.Random(11)
    numbers = sorted(range(count), key=lambda number: number + rng.uniform(0, 60))
    folder = STEADY | {"frame_wait": 30.0}
    names = {f"{number:06}.png": number for number in numbers}
    service = ServiceUnderTest(tmp_path / "killed", settings={"intake": {"attempts": 10}}, folder=folder)
    with service:
        service.drop_all({name: frame(number) for name, number in names.items()})
        kill_at_random(service, rng, count, kills)
        service.wait(
            lambda: len(list(service.output.iterdir())) == count and service.is_idle(), "every frame", timeout=500
        )
    told = service.recorded("image.done")
    order = [each["frame"] for each in told if not each.get("recovered")]
    assert order == sorted(order)
    assert {each["frame"] for each in told} == set(range(count))
    assert service.recorded("sequence.gap") == []
    with ServiceUnderTest(tmp_path / "whole", folder=folder) as whole:
        whole.drop_all({name: frame(number) for name, number in names.items()})
        whole.wait_for_endings(count, timeout=500)
    differ = [name for name in names if (whole.output / name).read_bytes() != (service.output / name).read_bytes()]
    assert differ == []


def test_a_live_frame_finds_a_full_pipeline_and_goes_next(tmp_path: Path) -> None:
    """Every queue is full of others, and every decoder has one that it cannot hand on."""
    roots = {role: str(tmp_path / "live" / role) for role in ("input", "output", "failed")}
    for root in roots.values():
        Path(root).mkdir(parents=True)
    live = {"name": "live", "originals": "delete", "kind": "frames", "latency": "realtime", **roots}
    settings = {"pipeline": {"queue": 4, "batch_maximum": 1, "arena_bytes": 64 << 20, "free_bytes_minimum": 0}}
    settings |= {"service": {"status_interval": 0.1}, "arrays": {"folder": [live]}}
    with ServiceUnderTest(tmp_path, settings=settings) as service:
        service.hold.touch()
        service.drop_all(samples(range(40)))

        def depth(name: str) -> int:
            status = json.loads((service.runtime / "status.json").read_text())
            return int(status.get("health", {}).get("channels", {}).get(name, {}).get("depth", 0))

        service.wait(lambda: (depth("frames"), depth("jobs")) == (4, 3), "a full pipeline")
        fresh = tmp_path / "fresh.png"
        fresh.write_bytes(frame(0))
        fresh.rename(Path(roots["input"]) / "0.png")
        service.wait(lambda: depth("frames") == 5, "the live frame beside the others")
        service.hold.unlink()
        service.wait_for_endings(41)
        order = [int(line) for line in service.count.read_text().splitlines()]
        (done,) = service.named("image.done", folder="live")
    assert order.index(done["job"]) == 1, "it did not go next after the image that was computed"


def test_masks_of_steady_frames_do_not_touch_what_the_filter_remembers(tmp_path: Path) -> None:
    """An empty frame is published without any alpha; the next one follows from the alpha that it had."""
    recipe = {"content": "mask", "format": "png", "empty_below": 0.9}
    masks = ServiceUnderTest(tmp_path / "masks", folder=STEADY, recipe=recipe)
    with masks:
        masks.serve_all({f"{number}.png": frame(number) for number in range(3)})
        verdicts = [each["verdict"] for each in masks.named("image.done")]
        masks.restart()
        masks.configure({}, STEADY, {"content": "mask", "format": "png"})
        masks.restart()
        masks.serve_all({"3.png": frame(3)})
    whole = ServiceUnderTest(tmp_path / "whole", folder=STEADY, recipe={"content": "mask", "format": "png"})
    with whole:
        whole.serve_all({f"{number}.png": frame(number) for number in range(4)})
    assert verdicts == ["empty"] * 3
    assert (masks.output / "3.png").read_bytes() == (whole.output / "3.png").read_bytes()


def test_stopped_again_and_again_in_the_middle_of_a_film(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=STEADY | {"frame_wait": 30.0}) as service:
        service.drop_all({f"{number}.png": frame(number) for number in range(300)})
        for count in (40, 110, 180):
            service.wait_for_endings(count)
            service.restart()
        service.wait_for_endings(300)
        assert numbers_done(service, ".") == list(range(300))
        assert [each["notes"] for each in service.named("image.done") if "notes" in each] == []


def test_a_recurrent_network_gets_frames_one_after_another(tmp_path: Path) -> None:
    """Two sequences, and a film beside them, by an engine that refuses a frame before the one before it."""
    numbers = list(range(40))
    random.Random(7).shuffle(numbers)
    places = {name: str(tmp_path / f"film-{name}") for name in ("input", "output", "failed")}
    for path in places.values():
        Path(path).mkdir()
    more = {"name": "film", "kind": "films", "originals": "delete"} | places
    options = {"engine": {"recurrent": True, "models": ["u2netp"]}}
    settings = {"arrays": {"folder": [more]}}
    folder = FRAMES | {"frame_wait": 30.0}
    with ServiceUnderTest(tmp_path, folder=folder, options=options, settings=settings) as service:
        (tmp_path / "film-input/a.mp4").write_bytes(film(frames=60))
        service.drop_all({f"{take}/f{number}.png": frame(number, take=take) for number in numbers for take in (1, 2)})
        service.wait_for_endings(81)
        assert numbers_done(service, "1/f") == numbers_done(service, "2/f") == list(range(40))
        assert service.named("image.done", path="a.mp4")[0]["frames"] == 60
        assert service.named("engine.fault") == []
        assert {each["batch"] for each in service.named("image.done", sequence="1/f")} <= {1, 2, 3}  # one of a sequence
