"""Hooks of the real service where no unit runs them, as in a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.images import sample_image, samples
from tests.support.service import ServiceUnderTest

pytestmark = pytest.mark.integration

TELL = "import os, sys; open(os.environ['RMBGD_HOOK'], 'a').write(sys.stdin.read() + '\\n')"
HANG = "import time; time.sleep(1000)"


def told(folder: Path, hook: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / hook).read_text().splitlines()] if (folder / hook).exists() else []


def test_service_runs_its_hooks_itself_in_a_terminal(tmp_path: Path) -> None:
    """Each with its event; the end of the work is told when nothing waits any more."""
    tell = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {TELL}"]
    hooks = {"hooks": {"on_failed": tell, "on_idle": tell}, "service": {"status_interval": 0.1}}
    with ServiceUnderTest(tmp_path / "service", settings=hooks) as service:
        service.drop("doc.pdf", b"%PDF-1.7 " * 100)
        service.wait_for("image.failed", path="doc.pdf")
        service.wait(lambda: told(tmp_path, "on_failed"), "the command of on_failed")
        service.wait(lambda: told(tmp_path, "on_idle"), "the command of on_idle")
    (failed,), (idle, *_) = told(tmp_path, "on_failed"), told(tmp_path, "on_idle")
    assert ("image.failed", "doc.pdf", 1) == (failed["event"], failed["path"], failed["count"])
    assert ("health", 1) == (idle["event"], idle["failed"])
    assert service.named("hook.failed") == []


def test_hanging_and_missing_commands_cost_no_image(tmp_path: Path) -> None:
    """Nor does a spool that cannot be written; each is told."""
    hanging = {"on_failed": [sys.executable, "-c", HANG], "on_idle": ["/no/such/program"], "timeout": 1.0}
    service = ServiceUnderTest(tmp_path, settings={"hooks": hanging, "service": {"status_interval": 0.1}})
    with service:
        service.serve_all({"doc.pdf": b"%PDF-1.7 " * 100} | samples(range(4)))
        service.wait_for("hook.failed", hook="on_failed")
        service.wait_for("hook.failed", hook="on_idle")
    assert "took longer than 1 s and was killed" in service.named("hook.failed", hook="on_failed")[0]["detail"]
    (service.runtime / "hooks").rmdir()
    (service.runtime / "hooks").write_text("in the way")
    with service.start():
        service.serve("more.png", sample_image(99))
        service.wait(lambda: len(service.named("hook.failed", hook="on_idle")) > 1, "the spool that is none")
