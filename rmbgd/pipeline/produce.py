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
from rmbgd.engine.types import Slot, view
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
        if not file.slot or file.slot in names.EXTENSIONS.values():
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
        self, cutout: Cutout, folder: Folder, recipe: Recipe, verdict: str, files: FileSet, day: date
    ) -> Produced:
        """Make the set of one image in `files`; may be called again for the same planes.

        Raises ImageError, Unencoded, and whatever writing raises.
        """
        slot = view(cutout.lease.block, cutout.region)
        alpha = _alpha(slot)
        produced = Produced(verdict)
        if verdict == "empty":  # what faint alpha there is would be a garbage matte
            alpha[...] = 0
        if recipe.review_below:
            self._judge(cutout, recipe, _bytes(alpha), slot.rgb, produced)
        try:
            self._files(cutout, folder, recipe, files, day, produced)
            if produced.reasons:
                produced.verdict, files.review = "review", True
                self._preview(cutout, _bytes(alpha), slot.rgb, files, day, produced)
        except MemoryError as error:
            raise Unencoded from error
        return produced

    def _judge(self, cutout: Cutout, recipe: Recipe, alpha: Bytes, rgb: Bytes, produced: Produced) -> None:
        found = confidence.features(alpha, rgb, cutout.answer.matte.disagreement)
        model = cutout.answer.model
        score = round(confidence.score(found, model), 4)
        versions = {"feature_version": confidence.FEATURE_VERSION, "version": confidence.coefficients()["version"]}
        produced.keys |= {"score": score, "review": {"features": found.document(), "model": model} | versions}
        if score < recipe.review_below:
            low = f"the matte is right with a confidence of {score:.2f}, below {recipe.review_below:g}"
            produced.reasons += [low, *confidence.reasons(found)]

    def _files(
        self, cutout: Cutout, folder: Folder, recipe: Recipe, files: FileSet, day: date, produced: Produced
    ) -> None:
        slot = view(cutout.lease.block, cutout.region)
        alpha = _alpha(slot)
        parts = self._parts(cutout, folder, recipe, alpha, produced)
        split = recipe.subjects == "split"
        every = list(planned(recipe, len(parts.subjects) if parts is not None and split else 0))
        has_rules = any(each.look.preset for each in every)
        keeps = len(produced.reasons) > 0 or parts is not None or has_rules
        whole = None if parts is None else alpha.copy()
        try:
            if parts is not None and not split and parts.subjects:
                largest = max(parts.subjects, key=lambda each: each.area)
                alpha[...] = subjects.part(alpha, parts, largest.number)
            cut = borders(alpha) if has_rules else ()
            for number, each in enumerate(every, 1):
                if parts is not None and whole is not None and split:
                    alpha[...] = whole if each.subject is None else subjects.part(whole, parts, each.subject)
                self._file(cutout, slot, each, files, day, produced, cut, last=number == len(every) and not keeps)
        finally:  # it may be called again
            if whole is not None:
                alpha[...] = whole
        if parts is not None and whole is not None and split:
            self._describe(cutout, recipe, whole, parts, files, day)

    def _file(
        self,
        cutout: Cutout,
        slot: Slot,
        each: PlannedFile,
        files: FileSet,
        day: date,
        produced: Produced,
        cut: Sequence[str],
        *,
        last: bool,
    ) -> None:
        look, facts = each.look, cutout.facts
        frame = arrange(slot.rgba, slot.alpha, look, profile=facts.icc_profile, last=last)
        height, width = frame.pixels.shape[:2]
        name = each.name(cutout.job.relative_path, day, (width, height))
        temporary = files.create(name, format=look.format, width=width, height=height)
        preset = self.presets.get(look.preset)
        large = look.format == "webp" and slot.rgb.size > 3 * LARGE_PIXELS
        with self.large if large else nullcontext():
            rules = None if preset is None else Rules(preset, lambda: files.data(temporary), cut)
            findings = make(frame, look, facts, temporary.write, rules)
        if frame.enlarged > look.enlarge_maximum:
            files.describe(enlarged=round(frame.enlarged, 2))
            produced.notes += [] if "enlarged" in produced.notes else ["enlarged"]
        if preset is None:
            return
        table = [finding.document() for finding in findings]
        files.describe(preset=look.preset, compliance=table)
        produced.compliance.append({"file": name.plain, "preset": look.preset, "rules": table})
        failed = [finding for finding in findings if finding.outcome == "fail"]
        produced.reasons += [
            f"{look.preset}: {each.rule}: {each.measured}; required: {each.required}" for each in failed
        ]

    # ------------------------------------------------------------------------------------------------ subjects

    def _parts(self, cutout: Cutout, folder: Folder, recipe: Recipe, alpha: Pixels, produced: Produced) -> Parts | None:
        """None where they stay together."""
        if recipe.subjects == "whole":
            return None
        seeds = None
        try:
            seeds = _seeds(folder, cutout.job.relative_path, *alpha.shape)
        except ValueError:
            produced.notes.append("seeds_unusable")
        return subjects.find_subjects(alpha, minimum=recipe.subjects_minimum, seeds=seeds)

    def _describe(self, cutout: Cutout, recipe: Recipe, alpha: Pixels, parts: Parts, files: FileSet, day: date) -> None:
        path, rgb = cutout.job.relative_path, view(cutout.lease.block, cutout.region).rgb
        scored = [
            replace(each, confidence=_confidence(subjects.part(alpha, parts, each.number), rgb, cutout.answer.model))
            for each in parts.subjects
        ]
        parts = replace(parts, subjects=tuple(scored))
        documents = {SUBJECTS: subjects.as_json(parts)}
        if recipe.coco:
            documents[COCO] = subjects.coco(alpha, parts, os.path.basename(path))
        for template, document in documents.items():
            name = FileName(template, *names.expand(template, path, "", when=day))
            files.create(name, format="json").write(json.dumps(document).encode() + b"\n")

    def _preview(self, cutout: Cutout, alpha: Bytes, rgb: Bytes, files: FileSet, day: date, produced: Produced) -> None:
        plain, later = names.expand("{dir}/{stem}", cutout.job.relative_path, names.PREVIEW, when=day)
        name = FileName(names.PREVIEW, plain, later)
        files.create(name, format="jpeg").write(preview(rgb, alpha, produced.reasons))


def _confidence(alpha: Pixels, rgb: Bytes, model: str) -> float:
    return round(confidence.score(confidence.features(_bytes(alpha), rgb), model), 4)


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
