"""A fleet as it is installed: the shipped configuration of the broker, and for each process the key of its role."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rmbgd.errors import Exit
from tests.fleet.test_keys import Site
from tests.support.images import assert_cutout_of, sample_image
from tests.support.service import REPOSITORY, ServiceUnderTest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def test_each_process_does_its_work_with_the_key_of_its_role(tmp_path: Path) -> None:
    site = Site(tmp_path)
    roots = {role: tmp_path / "shared" / role for role in ("input", "output", "failed")}
    for root in roots.values():
        root.mkdir(parents=True)

    def service(role: str, *, key: str = "", **options: object) -> ServiceUnderTest:
        proof = str(site.directory / f"{key or role}.nk")
        source = {"kind": "jetstream", "servers": [site.broker.url], "credentials": proof}
        folder = {role: str(path) for role, path in roots.items()} | {"originals": "keep"}
        return ServiceUnderTest(tmp_path / role, settings={"source": source}, folder=folder, options=options)

    def rmbgd(by: ServiceUnderTest, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "rmbgd", *words, "--config", str(by.config)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    worker, feeder, admin = service("worker"), service("feeder", announces=True), service("admin")
    with site.broker:
        code, said = rmbgd(worker, "fleet", "setup")
        assert code == Exit.FAILED
        assert "use the key of the role that may" in said
        assert rmbgd(admin, "fleet", "setup")[0] == Exit.OK
        with worker, feeder:
            image = sample_image(1)
            (roots["input"] / "a.png").write_bytes(image)
            worker.wait_for("image.done", path="a.png")
            assert_cutout_of(image, roots["output"] / "a.png")
            (roots["input"] / "bad.png").write_bytes(b"no image")
            worker.wait_for("image.failed", path="bad.png")
            worker.wait(lambda: str(worker.pid) in rmbgd(admin, "fleet", "status")[1], "its report")
            assert rmbgd(feeder, "fleet", "sweep")[0] == Exit.OK
            code, said = rmbgd(feeder, "fleet", "drain", "somewhere")
            assert code == Exit.FAILED
        assert worker.recorded("source.unusable") == feeder.recorded("source.unusable") == []
        wrong = service("wrong", key="feeder")
        with wrong:
            assert "use the key of the role that may" in wrong.wait_for("source.unusable")["detail"]
        nobody = service("admin")
        nobody.configure(
            {"source": {"kind": "jetstream", "servers": [site.broker.url]}},
            {role: str(path) for role, path in roots.items()} | {"originals": "keep"},
        )
        code, said = rmbgd(nobody, "fleet", "status")
        assert code == Exit.FAILED
        assert "the broker does not accept source.credentials, which is not set" in said
        assert "Traceback" not in said
