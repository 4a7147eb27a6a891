"""What people decide about images that wait, by commands and by moving files, as the running service sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.cli.control import ask
from rmbgd.errors import RmbgdError
from rmbgd.testing.clock import FakeClock
from tests.support.images import sample_image
from tests.support.reviews import built, doubt
from tests.support.service import ServiceUnderTest

pytestmark = pytest.mark.integration
Rmbgd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rmbgd(capsys: pytest.CaptureFixture[str]) -> Rmbgd:
    def run(service: ServiceUnderTest, *words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([*map(str, words), "--config", str(service.config)])
        return (status, *capsys.readouterr())

    return run


def served(base: Path, *names: str, approving: str = "") -> tuple[ServiceUnderTest, dict[str, int]]:
    """A service, not started, with one image of each name that waits, and by name their jobs.

    approving  what a service was killed at
    """
    with closing(built(base, clock=FakeClock())) as it:
        jobs = {
            name: doubt(it, f"{name}.jpg", {f"{name}.png": name.encode(), f"w/{name}.jpg": b"w" + name.encode()})
            for name in names
        }
        if approving:
            it.ledger.reviews.begin(jobs[approving], "approving", "anna")
    settings = {"service": {"status_interval": 0.1}, "intake": {"reconcile": 0.5, "quiet_closed": 0.05}}
    return ServiceUnderTest(base, settings=settings, folder={"review": str(base / "review")}), jobs


def decided(service: ServiceUnderTest) -> dict[str, tuple[str, str]]:
    return {each["path"]: (each["decision"], each["how"]) for each in service.named("review.decided")}


def waiting(service: ServiceUnderTest) -> int:
    count = json.loads((service.runtime / "status.json").read_bytes())["health"]["reviews"]
    assert isinstance(count, int)
    return count


def test_people_decide_by_commands(tmp_path: Path, rmbgd: Rmbgd) -> None:
    service, jobs = served(tmp_path, "a", "b", "c")
    review = tmp_path / "review"
    with service:
        service.wait(lambda: waiting(service) == 3, "three that wait")
        assert "3 images wait for a person; see `rmbgd review list`" in rmbgd(service, "status")[1]
        rows = json.loads(rmbgd(service, "review", "list", "--json")[1])["rows"]
        assert [(row["path"], row["job"], row["asked"]) for row in rows] == [
            (f"{name}.jpg", job, "") for name, job in jobs.items()
        ]
        assert rmbgd(service, "review", "approve", jobs["a"])[:2] == (0, "1 approved\n")
        assert rmbgd(service, "review", "approve", jobs["a"])[:2] == (0, "0 approved\n")
        assert rmbgd(service, "review", "reject", review / "b.review.jpg")[:2] == (0, "1 rejected\n")
        status, out, err = rmbgd(service, "review", "reject", "shop/c.jpg", "shop/d.jpg", 10**30, jobs["a"])
        assert (status, out) == (1, "1 rejected, 3 left\n")
        assert "shop/d.jpg: nothing of this name waits for review; see `rmbgd review list`\n" in err
        assert f"rmbgd review: {jobs['a']}: it is approved already\n" in err
        service.wait(lambda: waiting(service) == 0, "none that waits")
        assert rmbgd(service, "review", "list")[1] == "no image waits for review\n"
    assert decided(service) == {
        "a.jpg": ("approved", "command"),
        "b.jpg": ("rejected", "command"),
        "c.jpg": ("rejected", "command"),
    }
    found = {str(path.relative_to(service.output)) for path in service.output.rglob("*") if path.is_file()}
    assert found == {"a.png", "w/a.jpg"}
    assert not [path for path in review.rglob("*") if path.is_file()]


def test_people_decide_by_moving_files(tmp_path: Path, rmbgd: Rmbgd) -> None:
    service, jobs = served(tmp_path, "a", "b", "c", "d")
    review, moved = tmp_path / "review", [("a", "output"), ("b", "failed")]
    with service:
        service.wait(lambda: waiting(service) == 4, "four that wait")
        for name, role in moved:
            (tmp_path / role / "w").mkdir()
            for path in (f"{name}.png", f"w/{name}.jpg"):
                (review / path).rename(tmp_path / role / path)
        for path in ("c.png", "w/c.jpg"):
            (review / path).unlink()
        (review / "d.png").rename(service.output / "d.png")
        service.wait_for("review.decided", count=3)
        asked = "moved in part: approve or reject"
        assert asked in rmbgd(service, "review", "list")[1]
        assert decided(service) == {
            "a.jpg": ("approved", "moved"),
            "b.jpg": ("rejected", "moved"),
            "c.jpg": ("rejected", "gone"),
        }
        assert rmbgd(service, "review", "approve", jobs["d"])[0] == 0
        service.serve("a.jpg", sample_image(1))
        assert (service.output / "a.png").read_bytes() != b"a"
        assert not (service.output / "w" / "a.jpg").exists(), "it was of the older set"
    assert json.loads((service.failed / "b.png.error.json").read_text())["reason"] == "rejected_in_review"


def test_a_decision_that_a_kill_interrupted_is_carried_out(tmp_path: Path) -> None:
    service, _ = served(tmp_path, "a", approving="a")
    with service:
        told = service.wait_for("review.decided")
        assert (told["decision"], told["person"], told["recovered"]) == ("approved", "anna", True)
    assert (service.output / "a.png").read_bytes() == b"a"


def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    service, _ = served(tmp_path, "a")
    hostile = [{"do": "approve", "paths": 7}, {"do": "reject", "paths": [["\0", "/"]]}, {"do": "reviews", "limit": -1}]
    with service:
        for request in hostile:
            with pytest.raises(RmbgdError):
                ask(service.config, request)
        assert ask(service.config, {"do": "approve", "paths": []}) == {"decided": 0, "left": []}
