"""A process that nobody can kill: stuck inside the kernel, as a GPU's driver does it (F7)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.gpu_service import GpuUnderTest
from tests.support.images import samples
from tests.support.mounts import disk, mounted


@contextlib.contextmanager
def frozen(where: Path) -> Iterator[None]:
    """Who writes below it stands still in state D, whatever signal comes, until this is over."""
    if shutil.which("fsfreeze") is None:
        pytest.skip("fsfreeze is not installed (util-linux)")
    subprocess.run(["fsfreeze", "--freeze", where], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", where], check=True)


def state_of(pid: int) -> str:
    """R, S, D, Z ... of proc(5); empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_engine_that_sigkill_does_not_end_is_left_behind(tmp_path: Path) -> None:
    where = tmp_path / "disk"
    where.mkdir()
    settings = {"engine": {"device": "cuda:0", "batch_timeout": 3.0}}
    with (
        disk(tmp_path / "image") as device,
        mounted(where, "ext4", "rw", device),
        GpuUnderTest(tmp_path / "service", settings=settings).on_gpu() as service,
    ):
        before = set(service.children())
        with frozen(where):
            service.steps([f"write:{where / 'stuck'}"])
            data = service.serve_all(samples(range(5)))
            service.wait_for("engine.state", to="lost", reason="unkillable")
            (stuck,) = [pid for pid in before if state_of(pid) == "D"]
            service.turn(2)
            assert service.named("service.stalled") == []
            assert service.stop() == 0
            assert state_of(stuck) == "D"
    assert service.named("engine.failover")[0]["to"] == "cpu"
    assert f"process {stuck} was killed, and is not gone yet" in service.named("engine.fault")[0]["detail"]
    assert {event["device"] for event in service.named("image.done")} == {"cpu"}
    audit.assert_settled(service, data)
