"""Produce the files of one image from its output plane: subjects parted, arranged, encoded, checked, judged."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import numpy as np

from rmbgd import naming as names
from rmbgd.config.load import Folder, Look, Recipe
from rmbgd.config.presets import Preset
from rmbgd.deliver import confidence, subjects
from rmbgd.deliver.arrange import arrange
from rmbgd.deliver.check import borders
from rmbgd.deliver.make import Rules, make
from rmbgd.deliver.preview import preview
from rmbgd.deliver.subject_seeds import FILE_BYTES_MAXIMUM, SubjectSeeds, parse_seeds
from rmbgd.deliver.subjects import Parts
from rmbgd.engine.types import Slot
from rmbgd.errors import ImageError
from rmbgd.fs import folder_beneath, open_regular
from rmbgd.imaging.compose import Bytes, Pixels
from rmbgd.pipeline.decode import LARGE_PIXELS
from rmbgd.pipeline.items import Cutout
from rmbgd.publish.file_set import FileSet
from rmbgd.store.records import FileName, PublishedFile

SPLIT = "{dir}/{stem}~{subject}"  # where only the recipe says that subjects are split
SUBJECTS, COCO = "{dir}/{stem}.subjects.json", "{dir}/{stem}.coco.json"
SEEDS = ".seeds.json"  # behind the image's name, beside it


class Unencoded(Exception):
    """There was no memory to encode with; nothing has been published."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of one image. `subject`: the number of the only one that it shows; None: all that there is."""

    look: Look
    template: str | None  # None: named as its image
    subject: int | None = None

    def name(self, path: str, when: date, size: tuple[int, int]) -> FileName:
        """For the image at `path` below its drop folder. `size`: width and height of the file."""
        extension = names.EXTENSIONS[self.look.format]
        if self.template is None:
            return FileName.of_output(path, extension)
        slot = self.template if self.subject is None else f"{self.template}#{self.subject}"
        return FileName(slot, *names.expand(self.template, path, extension, when=when, subject=self.subject, size=size))


def planned(recipe: Recipe, count: int) -> Iterator[PlannedFile]:
    """The files that a recipe makes of an image with `count` subjects, in order; at least one."""
    for look in recipe.looks:
        template = getattr(look, "path", SPLIT if recipe.subjects == "split" else None)
        if template is not None and "subject" in names.fields_of(template):
            yield from (PlannedFile(look, template, number) for number in range(1, max(count, 1) + 1))
        else:
            yield PlannedFile(look, template)


def names_of(files: Sequence[PublishedFile], path: str, day: date) -> list[FileName]:
    """What the files of a set are called that is to be the same for another image, at `path`; none of a plain one."""
    found: list[FileName] = []
    for file in files:
        template, _, subject = file.slot.rpartition("#") if re.search(r"#[0-9]+$", file.slot) else (file.slot, "", "")
        if not file.slot or file.slot in names.PLAIN:
            return []
        sides = [int(str(file.facts[side])) for side in ("width", "height") if side in file.facts]
        ending = names.EXTENSIONS.get(str(file.facts.get("format")), "")
        number = int(subject) if subject else None
        size = (sides[0], sides[1]) if sides else None
        found.append(FileName(file.slot, *names.expand(template, path, ending, when=day, subject=number, size=size)))
    return found


@dataclass(slots=True)
class Produced:
    """What is to be said of a set. `reasons`: why people should look at it, in words; empty when they need not."""

    verdict: str
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    compliance: list[dict[str, object]] = field(default_factory=list)  # of each file that has a preset
    keys: dict[str, object] = field(default_factory=dict)  # of image.done: score, unusual, review


@dataclass(frozen=True, slots=True)
class Producer:
    """One instance serves all finish threads; it keeps no state of an image.

    presets  whose rules files must pass, by name
    large    held while one large WebP is encoded: libwebp takes 12 to 24 bytes a pixel
    """

    presets: Mapping[str, Preset]
    large: threading.Lock = field(default_factory=threading.Lock)

    def produce(
        self, cutout: Cutout, slot: Slot, folder: Folder, recipe: Recipe, verdict: str, files: FileSet, day: date
    ) -> Produced:
        """Make the set of one image in `files` from its planes; may be called again for the same ones.

        Raises ImageError, Unencoded, and whatever writing raises.
        """
        produced = Produced(verdict)
        try:
            _Set(self, cutout, slot, _alpha(slot), folder, recipe, files, day, produced).make()
        except MemoryError as error:
            raise Unencoded from error
        return produced


@dataclass(frozen=True, slots=True)
class _Set:
    """The set of one image while it is made. `alpha`: a view on the plane's, which is as it was afterwards, but for
    an empty one."""

    producer: Producer
    cutout: Cutout
    slot: Slot
    alpha: Any
    folder: Folder
    recipe: Recipe
    files: FileSet
    day: date
    produced: Produced

    @property
    def path(self) -> str:
        return self.cutout.job.relative_path

    def make(self) -> None:
        if self.produced.verdict == "empty":  # what faint alpha there is would be a garbage matte
            self.alpha[...] = 0
        if self.recipe.review_below:
            self._judge()
        self._make_files()
        if self.produced.reasons:
            self.produced.verdict, self.files.review = "review", True
            self._add_preview()

    def _judge(self) -> None:
        answer = self.cutout.answer
        found = confidence.features(_bytes(self.alpha), self.slot.rgb, answer.matte.disagreement)
        score = round(confidence.score(found, answer.model), 4)
        versions = {"feature_version": confidence.FEATURE_VERSION, "version": confidence.coefficients()["version"]}
        facts = {"features": found.document(), "model": answer.model} | versions
        self.produced.keys |= {"score": score, "review": facts}
        if score < self.recipe.review_below:
            low = f"the matte is right with a confidence of {score:.2f}, below {self.recipe.review_below:g}"
            self.produced.reasons += [low, *confidence.reasons(found)]

    def _make_files(self) -> None:
        parts, split = self._parts(), self.recipe.subjects == "split"
        every = list(planned(self.recipe, len(parts.subjects) if parts is not None and split else 0))
        has_rules = any(each.look.preset for each in every)
        keeps = len(self.produced.reasons) > 0 or parts is not None or has_rules
        whole = None if parts is None else self.alpha.copy()
        try:
            if parts is not None and not split and parts.subjects:
                largest = max(parts.subjects, key=lambda each: each.area)
                self.alpha[...] = subjects.part(self.alpha, parts, largest.number)
            cut = borders(self.alpha) if has_rules else ()
            for number, each in enumerate(every, 1):
                if parts is not None and whole is not None and split:
                    self.alpha[...] = whole if each.subject is None else subjects.part(whole, parts, each.subject)
                self._make_file(each, cut, last=number == len(every) and not keeps)
        finally:  # it may be called again
            if whole is not None:
                self.alpha[...] = whole
        if parts is not None and split:
            self._describe(parts)

    def _make_file(self, each: PlannedFile, cut: Sequence[str], *, last: bool) -> None:
        """`cut`: sides of the photograph that the subject touches. `last`: the planes are not needed any more."""
        look, facts = each.look, self.cutout.facts
        frame = arrange(self.slot.rgba, self.slot.alpha, look, profile=facts.icc_profile, last=last)
        height, width = frame.pixels.shape[:2]
        name = each.name(self.path, self.day, (width, height))
        temporary = self.files.create(name, format=look.format, width=width, height=height)
        preset = self.producer.presets.get(look.preset)
        large = look.format == "webp" and self.slot.rgb.size > 3 * LARGE_PIXELS
        with self.producer.large if large else nullcontext():
            rules = None if preset is None else Rules(preset, lambda: self.files.data(temporary), cut)
            findings = make(frame, look, facts, temporary.write, rules)
        if frame.enlarged > look.enlarge_maximum:
            self.files.describe(enlarged=round(frame.enlarged, 2))
            self.produced.notes += [] if "enlarged" in self.produced.notes else ["enlarged"]
        if preset is None:
            return
        table = [finding.document() for finding in findings]
        self.files.describe(preset=look.preset, compliance=table)
        self.produced.compliance.append({"file": name.plain, "preset": look.preset, "rules": table})
        failed = [finding for finding in findings if finding.outcome == "fail"]
        self.produced.reasons += [
            f"{look.preset}: {each.rule}: {each.measured}; required: {each.required}" for each in failed
        ]

    # ------------------------------------------------------------------------------------------------ subjects

    def _parts(self) -> Parts | None:
        """None where they stay together."""
        if self.recipe.subjects == "whole":
            return None
        seeds = None
        try:
            seeds = _seeds(self.folder, self.path, *self.alpha.shape)
        except ValueError:
            self.produced.notes.append("seeds_unusable")
        return subjects.find_subjects(self.alpha, minimum=self.recipe.subjects_minimum, seeds=seeds)

    def _describe(self, parts: Parts) -> None:
        scored = [replace(each, confidence=self._confidence(parts, each.number)) for each in parts.subjects]
        parts = replace(parts, subjects=tuple(scored))
        documents = {SUBJECTS: subjects.as_json(parts)}
        if self.recipe.coco:
            documents[COCO] = subjects.coco(self.alpha, parts, os.path.basename(self.path))
        for template, document in documents.items():
            name = FileName(template, *names.expand(template, self.path, "", when=self.day))
            self.files.create(name, format="json").write(json.dumps(document).encode() + b"\n")

    def _confidence(self, parts: Parts, number: int) -> float:
        found = confidence.features(_bytes(subjects.part(self.alpha, parts, number)), self.slot.rgb)
        return round(confidence.score(found, self.cutout.answer.model), 4)

    def _add_preview(self) -> None:
        plain, later = names.expand("{dir}/{stem}", self.path, names.PREVIEW, when=self.day)
        image = preview(self.slot.rgb, _bytes(self.alpha), self.produced.reasons)
        self.files.create(FileName(names.PREVIEW, plain, later), format="jpeg").write(image)


def _alpha(slot: Slot) -> Any:
    """A view on the plane's alpha."""
    return slot.alpha if slot.rgba is None else slot.rgba[:, :, 3]


def _bytes(alpha: Pixels) -> Bytes:
    return np.asarray(alpha if alpha.dtype == np.uint8 else alpha // 256, np.uint8)


def _seeds(folder: Folder, path: str, height: int, width: int) -> SubjectSeeds | None:
    """Of the file beside the image, if there is one. Raises ValueError where it cannot be used."""
    try:
        with folder_beneath(str(folder.input), os.path.dirname(path)) as beside:
            source = open_regular(f"/proc/self/fd/{beside}/{os.path.basename(path)}{SEEDS}")
    except FileNotFoundError:
        return None
    except (OSError, ImageError) as error:
        raise ValueError(str(error)) from error
    with open(source, "rb") as file:
        return parse_seeds(file.read(FILE_BYTES_MAXIMUM + 1), height, width)
