"""`rmbgd once`: files and folders through the same pipeline as the service's, without a daemon.

Originals stay where they are, nothing is remembered afterwards, and what cannot be done is reported, not quarantined.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rmbgd import naming as names
from rmbgd.clock import SystemClock
from rmbgd.config.extras import EXTRAS, is_installed
from rmbgd.config.load import Config, EngineSettings, Folder, Recipe, ServiceSettings
from rmbgd.config.presets import Preset
from rmbgd.engine.devices import EngineFactory
from rmbgd.engine.wiring import default_devices
from rmbgd.errors import Reason, explain
from rmbgd.events import EVENTS, Emit
from rmbgd.pipeline.pipeline import Pipeline
from rmbgd.pipeline.queue import NoReceivers
from rmbgd.publish.sidecar import read_json
from rmbgd.service.destination import InputImage, RunPlan, Summary
from rmbgd.service.open_pipeline import ENDS, run_pipeline
from rmbgd.store.records import Job

NAME = "once"
DOUBTED = {"reason": str(Reason.NEEDS_REVIEW), "stage": "finish"}  # there is no review folder
STAGING = ".rmbgd-once-"  # folders in OUT that begin so hold what a run has not finished


@contextmanager
def staging(place: Path) -> Iterator[Path]:
    """A folder in `place` for the time of a run; removes those of runs that were killed. Raises OSError.

    The run that owns such a folder has it locked, and no process keeps a lock when it ends, however it ends.
    """
    for left in place.glob(f"{STAGING}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as stack:
        folder = _owned_folder(place, stack)
        try:
            yield folder
        finally:
            with suppress(OSError):  # under another name no thread of an interrupted run puts a file into it
                folder = folder.rename(f"{folder}.ended")
            shutil.rmtree(folder, ignore_errors=True)


def _owned_folder(place: Path, stack: ExitStack) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix=STAGING, dir=place))
    except OSError as error:
        error.filename = os.fspath(place)  # nobody knows the other name
        raise
    try:
        stack.enter_context(_locked(folder))
    except (BlockingIOError, FileNotFoundError):  # another run took it for one that was left
        return _owned_folder(place, stack)
    except OSError:  # a file system without locks: then nobody removes it either
        pass
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder that is there. Raises OSError, and BlockingIOError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)
        yield
    finally:
        os.close(descriptor)


def once(
    plan: RunPlan,
    recipe: Recipe,
    *,
    engine: EngineSettings,
    service: ServiceSettings,
    emit: Emit,
    presets: Mapping[str, Preset] = MappingProxyType({}),
    overwrite: bool = False,
    summary: Summary | None = None,
    build_devices: EngineFactory = default_devices,
) -> Summary:
    """Make the cutouts of `plan`.

    An output that is there already is left alone, and its input skipped, unless `overwrite`; of a recipe that makes
    several files, an image one of whose files is there fails. What a person should look at fails, too, as there is no
    review folder. `emit` hears image.done, image.failed or image.postponed once per file, and run.summary at the end,
    however that comes. `presets`: of the configuration.
    `summary` is filled meanwhile. Raises ConfigError, OSError, and what broke if a part broke.
    """
    recipe = Config(recipe={"default": recipe}, preset=dict(presets)).resolved("default")
    outputs = plan.outputs(names.EXTENSIONS[recipe.format], names.FILM_EXTENSIONS[recipe.film])
    place = plan.place.absolute()
    place.mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    summary = Summary() if summary is None else summary
    summary.problems += [(str(each.filename), explain(each).removeprefix(f"{each.filename}: ")) for each in plan.unread]
    summary.failed += len(plan.unread)
    summary.total = len(outputs) + summary.failed
    there = set()
    if not recipe.makes_several:
        there = {name for name in outputs.values() if (place / name).exists() and not (place / name).is_dir()}
    wanted = {image: name for image, name in outputs.items() if overwrite or name not in there}
    summary.skipped = len(outputs) - len(wanted)
    began = clock.monotonic()
    try:
        with staging(place) as staged:  # also where there is nothing to do, to remove what a killed run left
            if wanted:
                config = Config(
                    service=service,
                    engine=engine,
                    recipe={"default": recipe},
                    preset=dict(presets),
                    folder=_folders(wanted, staged, recipe),
                )
                with _MovingEmit(config, place, wanted, emit, summary, overwrite=overwrite) as moving:
                    run_pipeline(config, moving, build_devices, partial(_feed, wanted, moving))
    finally:
        summary.seconds = clock.monotonic() - began
        keys = {"done": summary.done, "failed": summary.failed, "skipped": summary.skipped, "empty": len(summary.empty)}
        emit("run.summary", **keys, left=summary.left, seconds=summary.seconds)
    return summary


def _folders(images: Iterable[InputImage], staged: Path, recipe: Recipe) -> list[Folder]:
    """A drop folder for the images and one for the films of each root: once, once-2, once-3 ..."""
    roots = enumerate(dict.fromkeys((image.root, reads_as_film(image, recipe)) for image in images), 1)
    (review := staged / ".review").mkdir()
    return [
        Folder(
            name=NAME if number == 1 else f"{NAME}-{number}",
            input=Path(root),
            output=staged,
            failed=staged,
            review=review,
            originals="keep",
            kind="films" if is_film else "images",
            temporal="steady" if is_film else "off",
        )
        for number, (root, is_film) in roots
    ]


def reads_as_film(image: InputImage, recipe: Recipe) -> bool:
    """What has a film's suffix is one, where films can be read, and be what the recipe says; else a bad image."""
    return names.is_film(image.path) and not recipe.of_images_alone and is_installed(EXTRAS["video"][0])


class _MovingEmit(AbstractContextManager["_MovingEmit"]):
    """An Emit that puts a finished cutout from the staging folder to its place before its event is emitted.

    The staged name stays as well: an equal image is answered with a copy of what stands there. Any finish thread.
    """

    def __init__(
        self,
        config: Config,
        place: Path,
        outputs: Mapping[InputImage, str],
        emit: Emit,
        summary: Summary,
        *,
        overwrite: bool = False,
    ) -> None:
        folders = {(str(folder.input), folder.kind == "films"): folder for folder in config.folder}
        recipe = config.resolved("default")
        self._images = {
            (folders[image.root, reads_as_film(image, recipe)].name, image.path): image for image in outputs
        }
        self._staging, self._place, self._outputs, self._emit = config.folder[0].output, place, outputs, emit
        self._several, self._overwrite = config.resolved("default").makes_several, overwrite
        self._lock = threading.Lock()
        self._summary = summary  # guarded by _lock, and so is _closed
        self._closed = False

    def __exit__(self, *_: object) -> None:
        """From now on nothing is moved, counted or told: threads of an interrupted run may still finish an image."""
        with self._lock:
            self._closed = True

    def __call__(self, event: str, /, **keys: Any) -> None:
        if event in ENDS:
            with self._lock:
                if self._closed:
                    return
                event, keys = self._settle(event, keys)
        self._emit(event, **keys)

    def refuse(self, image: InputImage, why: str) -> None:
        with self._lock:
            self._summary.failed += 1
            self._summary.problems.append((image.shown, why))

    def _settle(self, event: str, keys: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The event as it is for the operator: named as he knows it, and of what became of the cutout at its place."""
        image = self._images[keys["folder"], keys["path"]]
        name = self._outputs[image]
        keys |= {"folder": NAME, "path": image.shown}
        if event == "image.done" and keys["verdict"] == "review":
            event, keys = _instead("image.failed", keys, **DOUBTED, detail="; ".join(keys["reasons"]))
        elif event == "image.postponed" and keys["why"] == "review":
            event, keys = _instead("image.failed", keys, **DOUBTED, detail="an equal image needs review: see there")
        elif event == "image.done":
            try:
                if self._several:
                    name = keys["output"]
                    self._move_set([each["path"] for each in keys["outputs"]], image)
                else:
                    self._move(keys["output"], name, image)
            except OSError as error:  # a folder under the cutout's name, a full disk
                event, keys = _instead("image.postponed", keys, why="storage", detail=explain(error))
            else:
                self._summary.done += 1
                self._summary.empty += [image.shown] if keys["verdict"] == "empty" else []
                return event, keys | {"output": name}
        self._summary.failed += 1
        return event, keys

    def _move(self, staged: str, name: str, image: InputImage) -> None:
        self._replace(self._staging / staged, self._place / name)
        story = self._staging / names.sidecar_name(staged)
        if story.exists():
            facts = read_json(str(story)) | {"folder": NAME, "path": image.shown, "output": name}
            story.write_text(json.dumps(facts, indent=1) + "\n", encoding="ascii")
            self._replace(story, self._place / names.sidecar_name(name))

    def _move_set(self, paths: Sequence[str], image: InputImage) -> None:
        """Each file to the place that its template gives; none where one is there and may not be overwritten."""
        for path in paths:
            if not self._overwrite and os.path.lexists(self._place / path):
                raise FileExistsError(errno.EEXIST, "it is there already (--overwrite replaces it)", self._place / path)
        for path in reversed(paths):
            self._move(path, path, image)

    @staticmethod
    def _replace(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        moving = source.with_name(f"{source.name}.moving")
        try:
            os.link(source, moving)
        except OSError:  # a file system without links
            shutil.copy2(source, moving)
        os.replace(moving, target)


def _instead(event: str, keys: Mapping[str, Any], **more: str) -> tuple[str, dict[str, Any]]:
    """Another event of the same image, with what it shares with the `keys` of the first."""
    return event, {key: keys[key] for key in EVENTS[event].keys if key in keys} | more


def _feed(
    images: Iterable[InputImage], moving: _MovingEmit, pipeline: Pipeline, claim: Callable[[Path, str], list[Job]]
) -> None:
    """Claim and send one file after another, as the pipeline takes them."""
    with pipeline.jobs as jobs, suppress(NoReceivers):  # then the engine broke, and says so itself
        for image in images:
            try:
                claimed = claim(Path(image.root), image.path)
            except OSError as error:
                moving.refuse(image, f"{error.strerror}")
            else:
                for job in claimed:
                    jobs.send(job)
