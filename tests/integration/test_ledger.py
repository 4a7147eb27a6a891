"""A ledger that is damaged, refused or removed: said once, mended or waited for, and no image lost or doubled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.damage import grow, jobs_of, spoil
from tests.support.images import sample_image, samples
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
