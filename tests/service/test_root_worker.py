"""Images of one root in a process that a cluster starts: what each name gets, and what ends the process's work."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rmbgd import __version__
from rmbgd.errors import RmbgdError, StorageFault
from rmbgd.fleet.root import Entry
from rmbgd.fleet.share import SharedRoot, fingerprint_of
from rmbgd.service import root_worker
from rmbgd.service.open_pipeline import ImageStuck
from rmbgd.service.root_worker import RootAway, RootWorker
from tests.support import audit
from tests.support.images import assert_cutout_of, sample_image, samples
from tests.support.ray_cluster import fake_devices
from tests.support.service import ServiceUnderTest
from tests.support.storage import Storage

SOURCE = {"kind": "jetstream", "servers": ["nats://127.0.0.1:1"]}


@pytest.fixture
def service(tmp_path: Path) -> ServiceUnderTest:
    """Its folders and its configuration."""
    return ServiceUnderTest(tmp_path, settings={"source": SOURCE}, folder={"originals": "keep"})


@contextmanager
def worker(service: ServiceUnderTest, root: str = "shop", **options: Any) -> Iterator[RootWorker]:
    devices = functools.partial(fake_devices, service.options | {"pids": str(service.base / "pids")} | options)
    made = RootWorker()
    made.start(service.config, root, "default", __version__, True, False, devices)
    try:
        yield made
    finally:
        made.close()


def entries(service: ServiceUnderTest, *names: str) -> list[Entry]:
    return [Entry(name, fingerprint_of(os.lstat(service.input / name)), 0.0) for name in names]


def test_each_name_gets_its_answer(service: ServiceUnderTest) -> None:
    service.drop("1.png", sample_image(1))
    service.drop("bad.png", b"no image")
    (service.input / "folder.png").mkdir()
    found = entries(service, "1.png", "bad.png", "folder.png")
    missing = [Entry("../1.png", "1-1", 0.0), Entry("2.png", "1-1", 0.0), Entry("1.png", "1-1", 0.0)]
    with worker(service) as first:
        answers = first.process([*found, *missing])
        assert [kind for kind, _ in answers] == ["done", "failed", "failed", "gone", "gone", "gone"]
        assert answers[1][1].startswith("unidentified: ")
        assert [why for _, why in answers[3:]] == [
            "it has a part that is empty, '.' or '..'", "it is gone", "it has changed since it was listed"
        ]  # fmt: skip
        assert [kind for kind, _ in first.process(found)] == ["done", "failed", "failed"]
    assert service.computed() == 1
    assert_cutout_of(sample_image(1), (service.output / "1.png").read_bytes())
    assert json.loads((service.failed / "folder.png.error.json").read_text())["reason"] == "not_regular"


def test_a_root_that_went_away_is_no_images_fault(service: ServiceUnderTest) -> None:
    service.drop("1.png", sample_image(1))
    found = entries(service, "1.png")
    with worker(service) as own:
        service.input.rename(service.base / "away")
        shutil.rmtree(service.output)
        with pytest.raises(RootAway, match="root 'shop': "):
            own.process(found)


@pytest.mark.parametrize("step", ["source", "publish"])
def test_what_cannot_be_read_or_written_has_no_answer(
    service: ServiceUnderTest, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(*_: Any) -> Any:
        raise StorageFault("io_error", "broken") if step == "publish" else OSError(errno.EIO, "broken")

    service.drop("1.png", sample_image(1))
    monkeypatch.setattr(SharedRoot, step, broken)
    with worker(service) as own:
        [(kind, why)] = own.process(entries(service, "1.png"))
        assert kind == ""
        assert "broken" in why
    assert audit.files(service.output) == audit.files(service.failed) == []


def test_equal_images_do_not_wait_for_one_that_goes_to_people(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path, settings={"source": SOURCE}, folder={"originals": "keep"})
    review = tmp_path / "review"
    review.mkdir()
    service.configure({"source": SOURCE}, {"originals": "keep", "review": str(review)}, {"review_below": 1.0})
    for number in range(150):
        service.drop(f"{number}.png", sample_image(1))
    batch = entries(service, *(f"{number}.png" for number in range(150)))
    with worker(service) as own, ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(own.process, (batch[:75], batch[75:])))
    assert [kind for each in answers for kind, _ in each] == ["done"] * 150


def test_an_image_that_does_not_end_ends_the_batch(service: ServiceUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    service.drop("1.png", sample_image(1))
    service.hold.touch()
    with worker(service) as own:
        monkeypatch.setattr(own, "_patience", 0.3)
        with pytest.raises(ImageStuck, match=r"1\.png: it has not ended after 0\.3 s"):
            own.process(entries(service, "1.png"))
        service.hold.unlink()


def test_a_share_that_does_not_answer_ends_the_batch(
    service: ServiceUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.drop("1.png", sample_image(1))
    answers = threading.Event()
    with worker(service) as own:
        monkeypatch.setattr(own, "_patience", 0.1)
        monkeypatch.setattr(SharedRoot, "answer", lambda *_, **__: answers.wait())
        with pytest.raises(ImageStuck, match=r"1 images have not ended after 0\.3"):
            own.process(entries(service, "1.png"))
        monkeypatch.undo()
        answers.set()


def test_an_engine_that_does_not_start_is_told(service: ServiceUnderTest) -> None:
    with pytest.raises(RmbgdError, match="no engine here"), worker(service, broken=True):
        pass


def test_a_host_whose_images_would_wait_for_a_gpu_says_so(
    service: ServiceUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = SimpleNamespace(device="none", close=lambda: None)
    monkeypatch.setattr(root_worker, "OpenPipeline", lambda *_: waiting)
    with pytest.raises(RmbgdError, match=r"no GPU is usable here, and health\.require_gpu"), worker(service):
        pass


@pytest.mark.parametrize(
    ("root", "recipe", "version", "words"),
    [
        ("shop", "default", "0.0", "rmbgd is .* here, and 0.0 where the backfill was started"),
        ("shop", "other", __version__, "root 'shop' has recipe 'default', and not 'other'"),
        ("shpo", "default", __version__, "no root 'shpo' in the configuration; did you mean 'shop'"),
    ],
)
def test_a_host_unlike_the_one_that_asks_says_so(
    service: ServiceUnderTest, root: str, recipe: str, version: str, words: str
) -> None:
    with pytest.raises(RmbgdError, match=words):
        RootWorker().start(service.config, root, recipe, version, True, False, functools.partial(fake_devices, {}))


@pytest.mark.integration
def test_objects_of_a_bucket_are_processed_in_a_spool_of_its_own(tmp_path: Path) -> None:
    images = samples(range(3)) | {f"equal-{number}.png": sample_image(1) for number in range(5)}
    with Storage(tmp_path / "storage") as storage:
        storage.make("cloud")
        etags = {name: storage.put("cloud", f"input/{name}", data) for name, data in images.items()}
        bucket = {"name": "cloud"} | {role: f"s3://cloud/{role}" for role in ("input", "output", "failed")}
        settings = {"source": SOURCE, "s3": storage.settings, "arrays": {"bucket": [bucket]}}
        (tmp_path / "own").mkdir()
        service = ServiceUnderTest(tmp_path / "own", settings=settings, folder={"originals": "keep"})
        names = [Entry(name, f"etag:{etag.strip(chr(34))}", 0.0) for name, etag in etags.items()]
        with worker(service, "cloud") as own:
            assert own.process(names) == [("done", "")] * 8
        results = storage.objects("cloud", "output/")
        assert set(results) == set(images)
        for name, data in images.items():
            assert_cutout_of(data, results[name])
        assert not (service.state / "spool").exists()


def test_what_breaks_the_pipeline_is_told(service: ServiceUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    service.drop("1.png", sample_image(1))
    monkeypatch.setattr(SharedRoot, "publish", broken)
    with worker(service) as own:
        for _ in range(2):
            with pytest.raises(RmbgdError, match="the pipeline broke: KeyError: 'a bug'"):
                own.process(entries(service, "1.png"))
