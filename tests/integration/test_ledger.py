"""A ledger that is damaged, refused or removed: said once, mended or waited for, and no image lost or doubled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.damage import claim_without_index, grow, jobs_of, lose_row_of_index, spoil
from tests.support.images import sample_image, samples
from tests.support.mounts import without_override
from tests.support.service import ServiceUnderTest

KEEP = {"originals": "keep"}


def ledger_of(service: ServiceUnderTest) -> Path:
    return service.state / "ledger.sqlite"


def wait_for_copy(service: ServiceUnderTest, *, since: int = 0) -> Path:
    return Path(service.wait_for("ledger.copied", since=since)["path"])


def served(tmp_path: Path, count: int = 8, **given: object) -> tuple[ServiceUnderTest, dict[str, bytes]]:
    """A service that is down, after some images; its ledger has hundreds of rows, and no copy yet knows of them."""
    service = ServiceUnderTest(tmp_path, **given)
    with service:
        wait_for_copy(service)
        data = service.serve_all(samples(range(count)))
    grow(ledger_of(service))
    return service, data


@pytest.mark.parametrize("how", ["zero", "flip"])
@pytest.mark.parametrize(("what", "copied"), [("job", True), ("target", False)])
def test_a_ledger_that_is_damaged_before_a_start_is_replaced(tmp_path: Path, how: str, what: str, copied: bool) -> None:
    service, data = served(tmp_path)
    if not copied:
        shutil.rmtree(service.state / "copies")
    last = jobs_of(ledger_of(service))[-1]
    spoil(ledger_of(service), what, how)
    damaged = ledger_of(service).read_bytes()
    with service.start():
        (replaced,) = service.named("ledger.replaced")
        assert Path(replaced["aside"]).read_bytes() == damaged
        assert (replaced["copy"] is not None) is copied
        assert service.named("storage.paused") == []
        more = service.serve_all(samples(range(50, 54)))
        assert min(event["job"] for event in service.endings() if event["path"] in more) > last + 1000
    audit.assert_complete(service.roots, data | more)


@pytest.mark.parametrize("how", ["zero", "flip"])
@pytest.mark.parametrize("what", ["job_by_path", "job", "target"])
def test_damage_that_is_met_at_work_is_mended_in_the_same_process(tmp_path: Path, how: str, what: str) -> None:
    """One pause and one resumption of the same kind and cause; what was in work goes back, and comes out once."""
    service, data = served(tmp_path)
    with service.start():
        service.hold_in_engine("held.png", sample_image(90))
        data["held.png"] = sample_image(90)
        spoil(ledger_of(service), what, how)
        data |= service.drop_all(samples(range(20, 30)))
        service.hold.unlink()
        service.wait_for("service.ready", count=3)
        service.wait_for("storage.resumed", kind="ledger", cause="damaged")
        service.wait(lambda: len(audit.files(service.done)) == len(data), "every image archived")
        service.turn(2)
        assert [event["cause"] for event in service.named("storage.paused")] == ["damaged"]
        assert len(service.named("storage.resumed")) == len(service.named("ledger.replaced")) == 1
        assert [event["cause"] for event in service.named("service.stopping")][1:] == ["the ledger is damaged"]
        assert service.named("image.failed") == []
    audit.assert_complete(service.roots, data)


def test_damage_again_and_again_is_told_in_few_lines(tmp_path: Path) -> None:
    """The second time within a day waits for a minute: nothing is claimed meanwhile, and nothing is said."""
    service, data = served(tmp_path)
    with service.start():
        for round_, cause in enumerate(("job_by_path", "target")):
            spoil(ledger_of(service), cause, "zero")
            service.drop(f"late-{round_}.png", sample_image(40 + round_))
            data[f"late-{round_}.png"] = sample_image(40 + round_)
            service.wait_for("storage.paused", count=round_ + 1)
            if round_ == 0:
                service.wait_for("storage.resumed")
                service.wait_for("image.done", path="late-0.png")
                wait_for_copy(service, since=service.events.index(service.named("storage.resumed")[0]))
        for _ in range(3):
            service.wait_for_new_status()
        assert len(service.named("storage.paused")) == 2
        assert len(service.named("ledger.replaced")) == 1
        assert service.endings("late-1.png") == []
    with service.start():
        service.wait_for("ledger.replaced", count=2)
        service.wait_for("image.done", path="late-1.png")
    audit.assert_complete(service.roots, data)


def test_an_index_that_only_recovery_reads_is_mended_before_ready(tmp_path: Path) -> None:
    """The quick check at opening does not compare indexes with their tables."""
    service, data = served(tmp_path)
    lose_row_of_index(ledger_of(service), "job_unfinished", "UPDATE job SET retired_at=NULL WHERE id=?")
    with service.start():
        assert [event["cause"] for event in service.named("storage.paused")] == ["damaged"]
        assert len(service.named("storage.resumed")) == len(service.named("ledger.replaced")) == 1
        data |= service.serve_all(samples(range(50, 52)))
    audit.assert_complete(service.roots, data)


def test_damage_that_recovery_meets_leaves_no_folder_locked(tmp_path: Path) -> None:
    """The next life, in the same process, takes the folders that the first one had."""
    service, data = served(tmp_path)
    claim_without_index(ledger_of(service), "job_in_flight")
    data |= {"b.png": sample_image(60)}
    (service.input / ".rmbgd" / "77__b.png").write_bytes(data["b.png"])
    with service.start():
        service.wait_for("image.done", path="b.png")
        data |= service.serve_all(samples(range(50, 52)))
        assert len(service.named("ledger.replaced")) == 1
        assert service.named("folder.waiting") == []
    audit.assert_complete(service.roots, data)


@pytest.mark.parametrize("touched", [False, True])
def test_kept_originals_with_their_outputs_are_not_computed_again(tmp_path: Path, touched: bool) -> None:
    """Known: by the copy's contents, or by a sidecar. Unknown: published after the copy. New: without an output."""
    service = ServiceUnderTest(tmp_path, folder=KEEP, recipe={"sidecar": "never"})
    with service:
        wait_for_copy(service)
        service.serve_all({f"known-{n}.png": sample_image(n) for n in range(3)})
    shutil.rmtree(service.state / "copies")
    for sidecar, name in (("always", "said"), ("never", "unsaid")):
        service.configure({}, KEEP, {"sidecar": sidecar})
        with service.start():
            service.wait_for("ledger.copied", count=2)
            service.serve_all({f"{name}-{n}.png": sample_image(10 + n + len(name)) for n in range(2)})
    for n in range(3):  # as a backup that was put back has them: the same contents, and other versions
        os.utime(service.input / f"known-{n}.png")
    (service.input / "new.png").write_bytes(sample_image(30))
    outputs = {name: (service.output / name).stat().st_mtime_ns for name in audit.files(service.output)}
    ledger_of(service).write_bytes(b"garbage")
    ended = len(service.endings())
    with service.start():
        replaced = service.wait_for("ledger.replaced")
        assert (replaced["adopted"], replaced["unknown"]) == (5, 2)
        service.wait_for("image.done", path="new.png")
        service.turn(2)
        assert [event["path"] for event in service.endings()[ended:]] == ["new.png"]
        assert outputs == {name: (service.output / name).stat().st_mtime_ns for name in outputs}
        if touched:
            for name in ("known-0.png", "said-0.png", "unsaid-0.png"):
                os.utime(service.input / name)
            again = [name for name in outputs if name.endswith("-0.png")]
            made = {name: service.wait_for("image.done", path=name, count=2)["output"] for name in again}
            assert made == {name: name for name in again}


@pytest.mark.parametrize("what", ["directory", "file", "replaced", "lock"])
def test_a_ledger_that_is_removed_at_work_is_written_back(tmp_path: Path, what: str) -> None:
    service = ServiceUnderTest(tmp_path, folder=KEEP)
    with service:
        wait_for_copy(service)
        data = service.serve_all(samples(range(6)))
        if what == "directory":
            shutil.rmtree(service.state)
        elif what == "replaced":
            (service.desk / "other").write_bytes(b"somebody's")
            os.rename(service.desk / "other", ledger_of(service))
        else:
            ledger_of(service).with_name("ledger.sqlite" + (".lock" if what == "lock" else "")).unlink()
        paused = service.wait_for("storage.paused", kind="ledger", cause="missing")
        resumed = service.wait_for("storage.resumed", kind="ledger", cause="missing")
        assert paused["path"] == str(ledger_of(service))
        assert ("held again" if what == "lock" else "written back") in resumed["detail"]
        data |= service.serve_all(samples(range(10, 14)))
        second = ServiceUnderTest(tmp_path / "second")
        second.config = service.config
        assert second.start(ready=False).reap() == 78, "the lock is held again"
        assert len(service.named("storage.paused")) == 1
    if what == "replaced":
        assert [each.read_bytes() for each in service.state.glob("*.replaced-*Z")] == [b"somebody's"]
    with service.start():
        service.turn(2)
        assert service.computed() == len(data), "known again"
    audit.assert_ledger_settled(service.state, done=len(data) + 2)


def test_a_ledger_that_cannot_be_written_back_waits_for_its_place(tmp_path: Path) -> None:
    """A file where its directory was: one pause, claims wait, and it heals by itself."""
    service = ServiceUnderTest(tmp_path)
    with service:
        wait_for_copy(service)
        data = service.serve_all(samples(range(3)))
        service.put_in_the_way_of(service.state)
        service.wait_for("storage.paused", kind="ledger", cause="missing")
        data |= service.drop_all(samples(range(10, 14)))
        for _ in range(3):
            service.wait_for_new_status()
        assert json.loads((service.runtime / "status.json").read_bytes())["health"]["paused"] == "ledger"
        assert len(audit.files(service.input)) == 4
        service.state.unlink()
        service.wait_for("storage.resumed", kind="ledger", cause="missing")
        service.wait_for_endings(len(data))
        assert len(service.named("storage.paused")) == 1
    audit.assert_settled(service, data)


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("ledger.sqlite", 0o644, "may not write it; chown root"),
        ("ledger.sqlite-wal", 0o600, "may not read it; chown root"),
        ("ledger.sqlite-shm", 0o600, "may not read it; chown root"),
        ("ledger.sqlite.lock", 0o600, "chown root"),
    ],
)
def test_files_of_another_user_are_named_with_what_to_do(tmp_path: Path, name: str, mode: int, said: str) -> None:
    """Nobody is told to restore a ledger that is sound, or to move it aside; once its owner is right it is used."""
    service = ServiceUnderTest(tmp_path, prefix=without_override())
    with service:
        service.serve_all(samples(range(2)))
        kept = (service.state / "ledger.sqlite-shm").read_bytes()
    place = service.state / name
    if not place.exists():
        place.write_bytes(kept if name.endswith("shm") else b"")
    os.chown(place, 65534, 65534)
    place.chmod(mode)
    assert service.start(ready=False).reap() == 78
    words = b"".join(service.stderr).decode()
    assert str(place) in words
    assert said in words
    assert "restore" not in words
    assert "aside" not in words
    os.chown(place, 0, 0)
    with service.start():
        service.serve_all(samples(range(5, 7)))


def test_too_few_descriptors_are_not_taken_for_damage(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path)
    with service:
        service.serve_all(samples(range(2)))
    before = ledger_of(service).read_bytes()
    service.prefix = ["prlimit", "--nofile=12"]
    assert service.start(ready=False).reap() == 78
    assert "LimitNOFILE" in b"".join(service.stderr).decode()
    assert ledger_of(service).read_bytes() == before
