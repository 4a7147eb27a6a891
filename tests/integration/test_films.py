"""Films through the real service: dropped, made whole, begun again after a kill, refused with a reason."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import av
import pytest

from rmbgd.errors import Reason
from tests.support.films import film, pictures, with_broken_index, with_subtitles_and_fonts
from tests.support.images import sample_image
from tests.support.mounts import mounted, run
from tests.support.service import ServiceUnderTest
from tests.support.standstill import stand_still

pytestmark = pytest.mark.integration

FILMS = {"kind": "films"}


def test_a_dropped_film_comes_out_with_alpha_and_its_sound(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=FILMS | {"temporal": "steady"}) as service:
        done = service.serve("shoe.mp4", film(frames=30, sound="aac"))
        assert (done["output"], done["frames"], done["width"], done["height"]) == ("shoe.mov", 30, 64, 48)
        assert done["film_seconds"] == pytest.approx(1.2)
        started = service.wait_for("film.started")
        assert (started["codec"], started["frames"], started["streams"]) == ("h264", 30, 2)
        data = (service.output / "shoe.mov").read_bytes()
    shown = pictures(data)
    assert len(shown) == 30
    assert [int(each[:, :, 3].max()) > 200 and int(each[:4, :, 3].max()) < 60 for each in shown] == [True] * 30
    with av.open(io.BytesIO(data)) as container:
        assert [each.codec_context.name for each in container.streams] == ["prores", "aac"]
    assert not [each for each in service.output.iterdir() if each.name != "shoe.mov"]


def film_process(service: ServiceUnderTest) -> int:
    """Of the film in work."""

    def found() -> int | None:
        names = {pid: Path(f"/proc/{pid}/comm") for pid in service.children()}
        return next((pid for pid, path in names.items() if path.exists() and path.read_text() == "rmbgd-film\n"), None)

    return int(service.wait(found, "the process of the film"))


def wait_for_frames(service: ServiceUnderTest, count: int) -> None:
    service.wait(lambda: service.given() >= count, f"{count} frames in the engine")


def nothing_left(service: ServiceUnderTest, *outputs: str) -> None:
    assert sorted(each.name for each in service.output.iterdir()) == sorted(outputs)
    assert [each.name for each in (service.input / ".rmbgd").iterdir()] == ["lock"]


def test_a_film_that_a_kill_ended_begins_again_and_comes_out_whole(tmp_path: Path) -> None:
    """While other images are served: the film that the last run died with does not hold them up."""
    images = {"name": "stills", "input": tmp_path / "i", "output": tmp_path / "o", "failed": tmp_path / "f"}
    for path in ("i", "o", "f"):
        (tmp_path / path).mkdir()
    more = {name: str(value) for name, value in images.items()} | {"originals": "delete"}
    with ServiceUnderTest(
        tmp_path, folder=FILMS, settings={"arrays": {"folder": [more]}}, options={"engine": {"delay": 0.02}}
    ) as service:
        for _ in range(2):
            before = service.given()
            if not (service.input / "a.mp4").exists():
                service.drop("a.mp4", film(frames=300))
            wait_for_frames(service, before + 20)
            service.kill()
            assert not (service.output / "a.mov").exists()
            service.start()
        (tmp_path / "i/x.png").write_bytes(sample_image(1))
        still = service.wait_for("image.done", folder="stills")
        done = service.wait_for("image.done", path="a.mp4")
        assert (done["frames"], still["output"]) == (300, "x.png")
        assert service.events.index(still) < service.events.index(done)
        assert len(pictures((service.output / "a.mov").read_bytes())) == 300
        nothing_left(service, "a.mov")


def test_a_stop_in_the_middle_puts_the_film_back_at_once(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=FILMS, options={"engine": {"delay": 0.05}}) as service:
        service.drop("a.mp4", film(frames=400))
        wait_for_frames(service, 10)
        assert service.stop() == 0
        [stop] = service.named("service.stop")
        assert stop["seconds"] < 20
        assert [each["why"] for each in service.named("image.postponed")] == ["stopping"]
        assert (service.input / "a.mp4").exists()
        nothing_left(service)


def test_a_process_that_dies_is_tried_again_and_the_second_time_it_is_the_films_fault(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=FILMS, options={"engine": {"delay": 0.02}}) as service:
        service.drop("a.mp4", film(frames=200))
        for number in (1, 2):
            service.wait_for("film.started", count=number)
            os.kill(film_process(service), signal.SIGSEGV)
        failed = service.wait_for("image.failed")
        assert (failed["reason"], len(service.named("film.lost"))) == ("decoder_failed", 1)
        assert "SIGSEGV" in failed["detail"]
        done = service.serve("b.mp4", film(frames=5))
        assert done["frames"] == 5
        nothing_left(service, "b.mov")


def test_kills_from_outside_are_for_want_of_memory(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder=FILMS, options={"engine": {"delay": 0.02}}) as service:
        service.drop("a.mp4", film(frames=200))
        for number in (1, 2, 3):
            service.wait_for("film.started", count=number)
            os.kill(film_process(service), signal.SIGKILL)
        assert service.wait_for("image.failed")["reason"] == "exhausts_memory"
        nothing_left(service)


def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    settings = {"pipeline": {"arena_bytes": 64 << 20, "free_bytes_minimum": 0, "film_timeout": 1.0}}
    with ServiceUnderTest(tmp_path, folder=FILMS, settings=settings, options={"engine": {"delay": 0.02}}) as service:
        service.drop("a.mp4", film(frames=60))
        wait_for_frames(service, 5)
        stand_still(film_process(service))
        lost = service.wait_for("film.lost")
        assert "1 s" in lost["detail"]
        assert service.wait_for("image.done")["frames"] == 60
        nothing_left(service, "a.mov")


def test_bad_films_are_refused_with_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    settings = {"intake": {"incomplete_timeout": 1.0}, "limits": {"pixels": 4_000_000, "film_seconds": 60}}
    whole = film(frames=30, sound="aac")
    bad = {
        "half.mp4": (whole[: len(whole) // 2], "truncated"),
        "ten-streams.mkv": (film("matroska", frames=5, sound="aac", sounds=9), "too_many_streams"),
        "ten-hours.mp4": (film(frames=2, times=[0, 900_000], options={"bf": "0"}), "too_long"),
        "huge.mp4": (film(frames=1, size=(2048, 2048)), "too_large"),
        "text.mkv": (b"not a film at all, whatever its name says; " * 20, "unidentified"),
        "still.mp4": (sample_image(3), "unidentified"),
        "empty.mov": (b"", "empty"),
    }
    with ServiceUnderTest(tmp_path, folder=FILMS, settings=settings) as service:
        service.drop_all({name: data for name, (data, _) in bad.items()} | {"whole.mp4": whole})
        service.wait_for_endings(len(bad) + 1)
        reasons = {each["path"]: each["reason"] for each in service.named("image.failed")}
        assert reasons == {name: reason for name, (_, reason) in bad.items()}
        assert all((service.failed / f"{name}.error.json").exists() for name in bad)
        nothing_left(service, "whole.mov")


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def test_broken_indexes_fonts_and_fragments(tmp_path: Path) -> None:
    plain, index = film(frames=30), film(frames=30, options={"bf": "0"})
    pieces = film(frames=30, options={"g": "10"}, container_options=FRAGMENTS)
    files = {
        "chunks-beyond-its-end.mp4": (with_broken_index(index, b"stco", 8, 0x7FFFFFFF), Reason.CORRUPT),
        "chunks-in-its-head.mp4": (with_broken_index(index, b"stco", 8, 0), Reason.CORRUPT),
        "frame-of-2-GB.mp4": (with_broken_index(index, b"stsz", 12, 0x7FFFFFFF), Reason.NO_FRAMES),
        "four-billion-sizes.mp4": (with_broken_index(index, b"stsz", 8, 0xFFFFFFFF), Reason.TRUNCATED),
        "four-billion-times.mp4": (with_broken_index(index, b"stts", 4, 0xFFFFFFFF), Reason.CORRUPT),
        "no-index.mp4": (index.replace(b"moov", b"free"), Reason.TRUNCATED),
        "half-of-its-pieces.mp4": (pieces[: len(pieces) * 6 // 10], Reason.TRUNCATED),
        "sound-alone.mp4": (film(frames=0, sound="aac", more_sound=20), Reason.NO_FRAMES),
        "fonts.mkv": (with_subtitles_and_fonts(film("matroska", frames=30)), None),
        "pieces.mp4": (pieces, None),
        "plain.mp4": (plain, None),
    }
    settings = {"intake": {"incomplete_timeout": 1.0}}
    with ServiceUnderTest(tmp_path, folder=FILMS, settings=settings) as service:
        service.drop_all({name: data for name, (data, _) in files.items()})
        service.wait_for_endings(len(files))
        reasons = {each["path"]: each["reason"] for each in service.named("image.failed")}
        assert reasons == {name: reason for name, (_, reason) in files.items() if reason is not None}
        done = {each["path"]: each for each in service.named("image.done")}
        assert {name: each["frames"] for name, each in done.items()} == dict.fromkeys(
            [name for name, (_, reason) in files.items() if reason is None], 30
        )
        assert done["fonts.mkv"]["notes"] == ["subtitles_left_out"]
        assert service.named("film.lost") == []


def test_an_equal_film_is_copied_and_other_settings_compute_it(tmp_path: Path) -> None:
    data = film(frames=8)
    with ServiceUnderTest(tmp_path, folder=FILMS) as service:
        first, second = service.serve("a.mp4", data), service.serve("b.mp4", data)
        assert (first["reused"], second["reused"], second["frames"], second["width"]) == (False, True, 8, 64)
        assert (service.output / "a.mov").read_bytes() == (service.output / "b.mov").read_bytes()
        assert service.computed() == 8
        service.stop()
        service.configure({}, FILMS | {"temporal": "steady"})
        service.start()
        assert service.serve("c.mp4", data)["reused"] is False


def test_a_film_and_images_take_turns_and_status_says_how_far_it_is(tmp_path: Path) -> None:
    images = {name: str(tmp_path / name) for name in ("i", "o", "f")}
    for path in images.values():
        Path(path).mkdir()
    more = {"name": "stills", "input": images["i"], "output": images["o"], "failed": images["f"], "originals": "delete"}
    settings = {"arrays": {"folder": [more]}, "service": {"status_interval": 0.1}}
    with ServiceUnderTest(tmp_path, folder=FILMS, settings=settings, options={"engine": {"delay": 0.02}}) as service:
        service.drop("a.mp4", film(frames=150))
        wait_for_frames(service, 5)
        for number in range(5):
            (tmp_path / f"i/{number}.png").write_bytes(sample_image(number))
        for number in range(5):
            service.wait_for("image.done", path=f"{number}.png")
        assert service.named("image.done", path="a.mp4") == []
        status = json.loads((service.runtime / "status.json").read_text())["film"]
        assert (status["path"], status["of"]) == ("a.mp4", 150)
        assert 0 < status["frames"] < 150
        service.wait_for("image.done", path="a.mp4")
        service.wait(lambda: json.loads((service.runtime / "status.json").read_text())["film"] is None, "no film")


def test_a_full_disk_is_waited_for_and_the_film_then_made(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path, folder=FILMS, recipe={"film": "png", "png_level": 0})
    with mounted(service.output, "tmpfs", "size=2m"), service:
        service.drop("a.mp4", film(frames=40, size=(640, 480)))
        assert service.wait_for("storage.paused")["kind"] == "disk_full"
        assert service.named("image.failed") == []
        run("mount", "-o", "remount,size=64m", service.output)
        assert service.wait_for("image.done")["frames"] == 40
        assert service.named("storage.resumed")
        nothing_left(service, "a.zip")


def test_damage_that_libav_only_logs_is_damage(tmp_path: Path) -> None:
    """Slices of FFV1 have checksums, and a frame with a wrong one is decoded all the same."""
    data = bytearray(film("matroska", "ffv1", frames=20, options={"level": "3", "slicecrc": "1"}))
    data[len(data) // 2] ^= 0x40
    with ServiceUnderTest(tmp_path, folder=FILMS, settings={"intake": {"incomplete_timeout": 1.0}}) as service:
        service.drop("a.mkv", bytes(data))
        failed = service.wait_for("image.failed")
        assert failed["reason"] == "corrupt"
        assert "CRC" in failed["detail"]
        nothing_left(service)


@pytest.mark.parametrize("form", ["prores4444", "png"])
def test_sound_that_is_much_longer_than_the_film_holds_nothing_up(tmp_path: Path, form: str) -> None:
    """Some 900 packets of sound behind the last of three frames, and as many between two of them."""
    for name, data in (
        ("after", film(frames=3, sound="aac", more_sound=500)),
        ("between", film(frames=3, times=[0, 1, 501], sound="aac", more_sound=500, options={"bf": "0"})),
    ):
        with ServiceUnderTest(tmp_path / name, folder=FILMS, recipe={"film": form}) as service:
            assert service.serve("a.mp4", data)["frames"] == 3
