"""Images of one root, by their names, in a pipeline of their own: what runs in a process that a cluster starts."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rmbgd import __version__
from rmbgd.clock import SystemClock
from rmbgd.engine.devices import EngineFactory
from rmbgd.errors import RmbgdError, StorageFault
from rmbgd.events import EVENTS
from rmbgd.fleet.message import Announcement, unusable
from rmbgd.fleet.root import Entry, job_of
from rmbgd.fleet.worker import fleet_config, make_spools, open_roots, root_of
from rmbgd.pipeline.items import Rejection, Timing
from rmbgd.pipeline.pipeline import images_maximum
from rmbgd.service.oneshot import staging
from rmbgd.service.open_pipeline import ImageStuck, OpenPipeline
from rmbgd.telemetry.messages import message
from rmbgd.wording import printable


class RootAway(RmbgdError):
    """Nothing of the root can be read here now."""


class RootWorker:
    """`process` may be called from several threads, once `start` has returned."""

    def start(
        self,
        config: Path,
        root: str,
        recipe: str,
        version: str,
        may_use_gpu: bool,
        retry_failed: bool,
        build_devices: EngineFactory,
    ) -> None:
        """Raises RmbgdError where this host is not as the one that asks, or cannot compute.

        retry_failed  what was refused before is tried again
        """
        try:
            self._begin(config, root, recipe, version, build_devices, may_use_gpu=may_use_gpu)
            self._retry_failed = retry_failed
        except Exception as error:  # not every kind can be sent to another process
            raise RmbgdError(printable(str(error) or type(error).__name__)) from error

    def _begin(
        self, config: Path, root: str, recipe: str, version: str, build_devices: EngineFactory, *, may_use_gpu: bool
    ) -> None:
        if version != __version__:
            raise RmbgdError(f"rmbgd is {__version__} here, and {version} where the backfill was started")
        settings = fleet_config(config)
        self._root = root_of(open_roots(settings), root)
        if self._root.folder.recipe != recipe:
            raise RmbgdError(f"{config}: root '{root}' has recipe '{self._root.folder.recipe}', and not '{recipe}'")
        if not may_use_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides none from an actor that asks for none
        self._held = ExitStack()
        state = self._held.enter_context(staging(Path(tempfile.gettempdir())))  # two of a host must not share a spool
        own = {
            "service": settings.service.model_copy(update={"state_directory": state}),
            "folder": [folder for folder in settings.folder if folder.name == root],
            "bucket": [bucket for bucket in settings.bucket if bucket.name == root],
        }
        settings = settings.model_copy(update=own)  # models of other roots are not loaded
        make_spools(settings)
        self._root = root_of(roots := open_roots(settings), root)
        self._check_root()
        self._pipeline = OpenPipeline(settings.with_spools(), roots, _tell_warning, build_devices)
        self._held.callback(self._pipeline.close)
        if self._pipeline.device == "none":
            raise RmbgdError("no GPU is usable here, and health.require_gpu keeps the CPU from computing")
        self._threads = ThreadPoolExecutor(images_maximum(settings.pipeline), "image")
        self._patience = settings.source.lease_maximum
        self._repeating = threading.Lock()

    def close(self) -> None:
        """Where its process does not end."""
        self._threads.shutdown()
        self._held.close()

    def process(self, entries: Sequence[Entry]) -> list[tuple[str, str]]:
        """For each: done | failed, now or before | gone, as far as is seen here | "", not read or stored; and why.

        Raises RootAway, ImageStuck, PipelineBroke.
        """
        patience = 3 * self._patience  # the pipeline has its own; this is for a share that does not answer
        try:
            return list(self._threads.map(self._one, entries, timeout=patience))
        except TimeoutError:
            raise ImageStuck(f"{len(entries)} images have not ended after {patience:g} s") from None

    def _one(self, entry: Entry) -> tuple[str, str]:
        try:
            kind, why = self._answer(entry, retry_failed=self._retry_failed)
            if kind == "repeat":
                with self._repeating:
                    kind, why = self._answer(entry, retry_failed=False)
        except (OSError, StorageFault) as error:
            kind, why = "", str(error)
        if kind in ("repeat", ""):
            self._check_root()
            kind = ""
        return kind, why

    def _answer(self, entry: Entry, *, retry_failed: bool) -> tuple[str, str]:
        """As `process`, or "repeat" where it has changed meanwhile, or memory was short."""
        root, key = self._root, entry.key
        if why := unusable(key):
            return "gone", why
        before = root.answer(key, entry.fingerprint)
        if before is not None and not (retry_failed and before.kind == "failed" and root.forget_refusal(key)):
            return before.kind, ""
        found = root.source(key, entry.fingerprint)
        if found.state in ("gone", "superseded"):
            return "gone", "it is gone" if found.state == "gone" else "it has changed since it was listed"
        name = Announcement(root.folder.name, key, entry.fingerprint, root.folder.recipe)
        job = job_of(name, found, SystemClock().monotonic())
        refused = Rejection(job, found.reason, found.detail, "intake", Timing()) if found.state == "refused" else None
        try:
            event, keys = self._pipeline.process(refused or job, self._patience)
        finally:
            root.discard(job)
        if event == "image.done":
            return "done", ""
        if event == "image.failed":
            return "failed", f"{keys['reason']}: {keys['detail']}"
        return "" if keys["why"] in ("stopping", "storage") else "repeat", keys["detail"]

    def _check_root(self) -> None:
        if trouble := self._root.trouble():
            raise RootAway(printable(f"root '{self._root.folder.name}': {trouble}"))


def _tell_warning(event: str, /, **keys: Any) -> None:
    """What the pipeline says besides the ends of images: an engine that fails, or is replaced by the CPU."""
    if event in EVENTS and EVENTS[event].level != "info":
        print(message(event, keys), file=sys.stderr, flush=True)
