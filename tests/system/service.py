"""The installed service as an operator meets it: systemctl, folders, the log file. Nothing of its inside."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.system.machine import Machine

UNIT = "rmbgd.service"
PATIENCE = 120.0  # s; nothing takes as long when all is well
LOG = "/var/log/rmbgd/events.jsonl"
DROP_INS = "/etc/systemd/system/rmbgd.service.d"
FOLDERS = ("in", "out", "done", "failed")
USER = "ada"  # may drop images; is not the service


def image(seed: int, width: int = 320, height: int = 240) -> bytes:
    """A JPEG that no other seed gives: noise with a bright disc."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 80, (height, width, 3), dtype=np.uint8)
    rows, columns = np.ogrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 3) ** 2
    pixels[disc] = random.integers(180, 255, 3, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    return stream.getvalue()


class InstalledService:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._ticks = threading.Event()  # never set: its wait is the pause between two looks

    # --- systemctl

    def reset(self) -> None:
        """No drop-ins, empty folders, no ledger, no log, and a user who may drop images."""
        self.machine.sh(
            f"systemctl stop {UNIT}; systemctl reset-failed {UNIT} || true\n"
            f"rm -rf {DROP_INS} /var/lib/rmbgd/* /var/log/rmbgd/* /srv/rmbgd\n"
            "cp /root/rmbgd/config/rmbgd.toml /etc/rmbgd/rmbgd.toml\n"
            "systemd-tmpfiles --create\n"
            f"id {USER} >/dev/null 2>&1 || useradd --no-create-home --groups rmbgd-in {USER}\n"
            "systemctl daemon-reload"
        )

    def drop_in(self, text: str) -> None:
        self.machine.sh(f"mkdir -p {DROP_INS}")
        self.machine.path(f"{DROP_INS}/test.conf").write_text(text)
        self.machine.run("systemctl", "daemon-reload")

    def start(self) -> None:
        self.machine.run("systemctl", "start", UNIT)

    def signal(self, name: str) -> None:
        self.machine.run("systemctl", "kill", "--kill-whom=main", f"--signal={name}", UNIT)

    def stop(self, *, check: bool = True) -> None:
        self.machine.run("systemctl", "stop", UNIT, check=check)

    def show(self, *properties: str) -> dict[str, str]:
        text = self.machine.run("systemctl", "show", UNIT, f"--property={','.join(properties)}")
        return dict(line.partition("=")[::2] for line in text.splitlines())

    def journal(self, *options: str) -> str:
        return self.machine.run("journalctl", "--sync") + self.machine.run("journalctl", f"--unit={UNIT}", *options)

    # --- folders

    def drop(self, name: str, data: bytes, **how: str) -> None:
        self.drop_all({name: data}, **how)

    def serve(self, name: str, data: bytes) -> None:
        self.drop(name, data)
        output = os.path.splitext(name)[0] + ".png"
        self.wait(lambda: output in self.files("out"), f"the cutout of {name}")

    def drop_all(self, files: dict[str, bytes], *, umask: str = "022") -> None:
        """Copy files, at relative paths, into the input as USER does: written in place, with one command."""
        staged = self.machine.path("/var/tmp/staged")
        shutil.rmtree(staged, ignore_errors=True)
        for name, data in files.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        copy = f"umask {umask}; cp -r /var/tmp/staged/. /srv/rmbgd/in/"
        self.machine.run("runuser", "-u", USER, "--", "/bin/sh", "-ec", copy)

    def files(self, folder: str) -> set[str]:
        root = self.machine.path(f"/srv/rmbgd/{folder}")
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return {os.fspath(path) for path in found if path.parts[0] != ".rmbgd"}

    # --- events

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        try:
            text = self.machine.path(LOG).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [event for event in found if name in (None, event["event"])]

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true value of `condition`; fails the test when it never comes."""
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"waited {PATIENCE} s for {what}\n{self.journal('-n', '40', '-o', 'cat')}\n"
                    f"{self.machine.run('systemctl', 'status', UNIT, check=False)}"
                )
            self._ticks.wait(0.1)
        return value
