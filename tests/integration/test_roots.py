"""Drop folders that vanish, come back, are mounted, pulled, or say nothing (T18 to T20)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.images import sample_image, samples
from tests.support.mounts import disk, mount, mounted, unmount
from tests.support.service import ServiceUnderTest

EVENTS_ONLY = {"intake": {"reconcile": 3600.0}}
ROUNDS = 2


@pytest.mark.parametrize("how", ["removed", "renamed away"])
def test_folder_that_is_made_anew_is_watched_anew(tmp_path: Path, how: str) -> None:
    data = {f"{n}-{which}.png": sample_image(10 * n + which) for n in range(ROUNDS) for which in range(3)}
    with ServiceUnderTest(tmp_path, settings=EVENTS_ONLY) as service:
        for n in range(ROUNDS):
            names = [name for name in data if name.startswith(f"{n}-")]
            service.serve(names[0], data[names[0]])
            since = len(service.events)
            if how == "removed":
                shutil.rmtree(service.input)
            else:
                os.rename(service.input, tmp_path / f"away-{n}")
            service.wait_for("folder.waiting", folder="shop", cause="missing", since=since)
            service.input.mkdir()
            (service.input / names[1]).write_bytes(data[names[1]])
            service.wait_for("folder.watching", folder="shop", since=since)
            service.wait_for("image.done", path=names[1])
            service.serve(names[2], data[names[2]])
    audit.assert_complete(service.roots, data)


def test_claim_folder_that_is_removed_loses_nothing_silently(tmp_path: Path) -> None:
    """What was read is published, what was not is reported as lost, and the service goes on."""
    names = [f"{n}.png" for n in range(40)]
    small = {"pipeline": {"arena_bytes": 16 << 20, "decode_threads": 1}, "limits": {"pixels": 500_000}}
    with ServiceUnderTest(tmp_path, settings=EVENTS_ONLY | small) as service:
        service.hold.touch()
        for n, name in enumerate(names):
            service.drop(name, sample_image(n, size=(900, 500)))
        service.wait(lambda: len(audit.claimed(service.input)) >= 8 and service.given(), "many images in work")
        shutil.rmtree(service.input / ".rmbgd", ignore_errors=True)  # it is made again at once, and not empty then
        service.hold.unlink()
        service.wait(lambda: {each["path"] for each in service.endings()} == set(names), "an outcome for each")
        noted = {each["path"] for each in service.named("image.done") if "original_missing" in each.get("notes", ())}
        lost = {each["path"] for each in service.named("image.failed", reason="vanished")}
        assert noted
        assert lost
        assert set(audit.files(service.output)) == set(names) - lost
        assert set(audit.files(service.done)) == set(names) - lost - noted
        assert service.named("image.postponed") == []
        service.turn()
        service.wait_for_new_status()
        status = json.loads((service.runtime / "status.json").read_bytes())
        assert status["health"]["failed"] == len(lost)
    audit.assert_ledger_settled(service.state, done=len(names) - len(lost) + 1, failed=len(lost))


def test_kept_originals_that_are_deleted_during_the_work_are_published(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder={"originals": "keep"}) as service:
        service.hold_in_engine("0.png", sample_image(0))
        (service.input / "0.png").unlink()
        service.hold.unlink()
        assert service.wait_for("image.done", path="0.png")["notes"] == ["original_missing"]
    assert audit.files(service.output) == ["0.png"]


def test_claimed_files_that_are_gone_at_the_next_start_are_reported(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path).start()
    service.hold_in_engine("0.png", sample_image(0))
    service.kill()
    shutil.rmtree(service.input / ".rmbgd")
    with service.start():
        assert service.wait_for("image.failed", path="0.png")["reason"] == "vanished"
    audit.assert_ledger_settled(service.state, done=0, failed=1)


def test_folder_that_is_swapped_between_two_looks_is_noticed(tmp_path: Path) -> None:
    """Another directory under the same name, without a moment of absence: told as replaced, and served."""
    with ServiceUnderTest(tmp_path, settings=EVENTS_ONLY) as service:
        fresh = tmp_path / "fresh-root"
        fresh.mkdir()
        (fresh / "1.png").write_bytes(sample_image(1))
        os.rename(service.input, tmp_path / "old")
        os.rename(fresh, service.input)
        service.wait(lambda: service.named("folder.replaced") or service.named("folder.waiting"), "a word on it")
        service.wait_for("image.done", path="1.png")
        service.serve("2.png", sample_image(2))
    audit.assert_complete(service.roots, samples([1, 2]))


@pytest.mark.parametrize(("kind", "options"), [("ext4", "rw"), ("none", "bind")])
def test_mount_that_comes_and_goes(tmp_path: Path, kind: str, options: str) -> None:
    """With require_mount nothing is written below the empty mount point; a bind from the same disk is a mount, too."""
    data = samples(range(4))
    store = tmp_path / "store"
    store.mkdir()
    service = ServiceUnderTest(tmp_path, settings=EVENTS_ONLY, folder={"require_mount": True})
    disks = disk(tmp_path / "stick.img") if kind == "ext4" else contextlib.nullcontext(store)
    with disks as source, service.start(ready=False):
        for n in (0, 2):
            since = len(service.events) if n else 0
            service.wait_for("folder.waiting", folder="shop", cause="not_mounted", since=since)
            (service.input / "below.png").write_bytes(sample_image(99))  # not on the stick
            assert audit.claimed(service.input) == []
            with mounted(service.input, kind, options, source):
                for name in (f"{n}.png", f"{n + 1}.png"):
                    service.upload(name, data[name])
        service.wait_for("folder.waiting", folder="shop", cause="not_mounted", count=3)
        assert os.listdir(service.input) == ["below.png"], "something was written below the mount point"
    assert service.endings("below.png") == audit.files(store) == []
    (service.input / "below.png").unlink()
    audit.assert_complete(service.roots, data)


def test_file_system_mounted_over_a_folder_in_use(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, settings=EVENTS_ONLY) as service:
        service.turn()
        with mounted(service.input, "tmpfs", "size=4m"):
            service.upload("0.png", sample_image(0))
            service.upload("1.png", sample_image(1))
        service.upload("2.png", sample_image(2))
    audit.assert_complete(service.roots, samples(range(3)))


def test_stick_that_is_pulled_while_its_images_are_computed(tmp_path: Path) -> None:
    data = samples(range(12))
    service = ServiceUnderTest(tmp_path, settings=EVENTS_ONLY, folder={"require_mount": True})
    service.hold.touch()
    with disk(tmp_path / "stick.img") as device, mounted(service.input, "ext4", "rw", device), service:
        for name, content in data.items():
            (service.input / name).write_bytes(content)
        service.wait(service.given, "images in the engine")
        unmount(service.input)
        service.hold.unlink()
        service.wait_for("folder.waiting", folder="shop", cause="not_mounted")
        service.wait_for("image.postponed")
        assert os.listdir(service.input) == [], "something was written below the mount point"
        mount(service.input, "ext4", "rw", device)
        service.wait(lambda: set(audit.files(service.done)) == set(data), "every original archived")
        service.wait(lambda: len(service.endings()) >= len(data), "every event, which follows its original")
        assert sorted(event["path"] for event in service.named("image.done")) == sorted(data)
        assert {event["attempt"] for event in service.endings()} == {1}
        audit.assert_complete(service.roots, data)


def test_silent_file_system_is_polled_without_being_told_to(tmp_path: Path) -> None:
    settings = {"intake": {"reconcile": 7.0, "reconcile_lossy": 0.3}}  # files are missed when older than 5 s
    store = tmp_path / "store"
    store.mkdir()
    with mounted(store, "tmpfs", "size=16m"):
        for name in ("lower", "upper", "work"):
            (store / name).mkdir()
        service = ServiceUnderTest(tmp_path / "service", settings=settings)
        layers = f"lowerdir={store}/lower,upperdir={store}/upper,workdir={store}/work"
        data = samples(range(6))
        with mounted(service.input, "overlay", layers, "overlay"), service:
            for n in range(3):
                (store / "upper" / f"{n}.png").write_bytes(data[f"{n}.png"])  # behind the mount: no events
            service.wait_for("watch.degraded", folder="shop", cause="silent")
            for n in range(3, 6):
                (store / "upper" / f"{n}.png").write_bytes(data[f"{n}.png"])
                service.wait_for("image.done", path=f"{n}.png")
            service.upload("50.png", sample_image(50))
            service.wait_for("watch.restored", folder="shop")
            audit.assert_complete(service.roots, data | samples([50]))
