"""Fits the confidence score on images with truth, and measures what reviewing the lowest scores finds.

    python -m tools.fit_confidence measure --out u2netp.jsonl      every image and its made failures: features and IoU
    python -m tools.fit_confidence fit u2netp.jsonl [LABELS ...]   cross-validation, tables, one line of JSON; --write

`measure` computes mattes as the service does, takes a second look at all of them, and writes a line for each image.
`fit` also reads the labels that `rmbgd review export` writes, each a photograph of its own. Everything is seeded: equal
files give equal coefficients.

All terms weigh the same, each in units of its spread among right mattes (from the median to the highest tenth): with so
few failures, weights of their own found less in kinds that they were not fitted to (Dawes, 1979). A logistic regression
turns the sum into a probability. Failures are thinned to a share of all images; of made ones, each kind keeps equally
many, and what was made well all stays. Scores that the tables judge come from other photographs, and for a made image
from other kinds as well.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from rmbgd.deliver import confidence
from rmbgd.deliver.confidence import FEATURE_VERSION, Features, features, terms
from rmbgd.evaluate.risk import RIGHT, aurc, found_by
from tools.benches.filters import SHARED, Bytes, Case, photographs
from tools.made_failures import KINDS, made
from tools.tables import Report, steps, table

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
NATURAL = "natural"
LOOKS = "plain", "second_look"
REFRAMED = "reframed"  # the term that only a second look gives
SHARE = 0.09  # of failures among all images, where made ones are thinned to it
OTHER_SHARES = 0.08, 0.1  # likewise, for tables of their own
TRAINED_SHARE = 0.3  # likewise while weights are fitted; the bias is then moved to SHARE
PENALTY = 1.0  # on the square of the slope: a few labels may be separable, and would have none
LEAST_UNIT = 1e-3  # a term that differs less among right mattes has no weight
FOLDS, ORDERS = 5, 3  # photographs are dealt into folds in so many orders; scores are means over them
THINNINGS, RESAMPLES = 50, 1000
VERSION = 2  # of the coefficients: raise it when their numbers change
REVIEWED = 0.05, 0.1, 0.2
TARGET = Path(confidence.__file__).with_name(confidence.COEFFICIENTS)
MIRRORED = 1  # version of the features whose second look was at the mirrored image; the others are the same
MOST_NEWTON, CLOSE = 50, 1e-10


@dataclass(frozen=True)
class Measured:
    """One image: of which photograph, natural or of which made kind, its features, whether its matte is right, and
    whether the service would have taken a second look at it."""

    source: str
    kind: str
    features: Features
    right: bool
    people: bool = False
    grey: bool = False

    @property
    def looked_at(self) -> bool:
        return self.features.disagreement is not None


@dataclass(frozen=True)
class Fitted:
    """Weights by term, none negative, and the bias."""

    names: tuple[str, ...]
    weights: Floats
    bias: float

    def doubts(self, values: Floats) -> Floats:
        return np.asarray(values @ self.weights + self.bias)

    def document(self) -> dict[str, Any]:
        weights = {name: round(float(value), 4) for name, value in zip(self.names, self.weights, strict=True)}
        return {"bias": round(self.bias, 4), "weights": weights}


# --- measure


def measure(options: argparse.Namespace) -> None:
    matte = mattes(options.model)
    cases = list(photographs(options.folder))
    people = with_people(options.folder / "MANIFEST.tsv")
    if options.quick:
        cases = cases[:2]
    every = [(case.name, NATURAL, case) for case in cases]
    every += [(each.source, each.kind, each.case) for each in made(cases, list(KINDS), options.each, options.seed)]
    with options.out.open("w", encoding="utf-8") as file:
        for at in steps(len(every), "mattes"):
            source, kind, case = every[at]
            alpha, grey, differs = matte(case.rgb)
            row = {
                "source": source, "kind": kind, "name": case.name, "iou": round(overlap(case, alpha), 4),
                "people": source in people, "grey": grey, "model": options.model, "feature_version": FEATURE_VERSION,
                "features": features(alpha, case.rgb, differs).document(),
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def mattes(model: str) -> Callable[[Bytes], tuple[Bytes, bool, float]]:
    """(alpha as the service has it, empty where its verdict is; needs a second look; disagreement of that)."""
    import torch

    from rmbgd.backends.cpu.backend import report
    from rmbgd.backends.second_look import disagreement, needs_second_look, wider
    from rmbgd.config.settings import Recipe
    from rmbgd.engine.types import verdict_of
    from rmbgd.imaging.refine import refine_edges, refines
    from rmbgd.imaging.resize import image_to_network, matte_to_image
    from rmbgd.models.load import load_model
    from tools.benches.filters import network

    loaded = load_model(model, device="cpu", dtype=torch.float32)
    alpha_of = network(loaded.module)

    def of(rgb: Bytes) -> tuple[Bytes, bool, float]:
        guide = image_to_network(rgb, loaded.input_size, loaded.filter)
        matte, look = (alpha_of(each.astype(np.float32) / np.float32(255)) for each in (guide, wider(guide)))
        seen = report(0, matte)
        alpha = np.array(matte_to_image(matte, *rgb.shape[:2]))
        if refines(loaded.input_size, *rgb.shape[:2]):
            refine_edges(rgb, matte, guide, alpha)
        if verdict_of(seen, empty_below=Recipe().empty_below) == "empty":
            alpha[:] = 0
        levels = np.rint(alpha.clip(0, 1) * 255).astype(np.uint8)
        return levels, needs_second_look(seen), disagreement(matte, look)

    return of


def overlap(case: Case, alpha: Bytes) -> float:
    """IoU; 1 where neither has a subject."""
    inside, subject = (alpha >= 128) & case.counted, (case.truth > 0.5) & case.counted
    union = int((inside | subject).sum())
    return int((inside & subject).sum()) / union if union else 1.0


def with_people(manifest: Path) -> set[str]:
    """Names of images whose subject is said to be a person, or people; none without a manifest."""
    if not manifest.is_file():
        return set()
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row["id"] for row in rows if "person" in row["subject"] or "people" in row["subject"]}


def read(paths: Sequence[Path]) -> list[Measured]:
    """Lines of `measure` and of `rmbgd review export`. Raises SystemExit for features of another version."""
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            if "features" not in row:  # it waited for a rule of a preset alone, and has no score
                continue
            if row["feature_version"] == MIRRORED:
                row["features"]["disagreement"], row["feature_version"] = None, FEATURE_VERSION
            if row["feature_version"] != FEATURE_VERSION:
                told = f"{path}, line {number}: features of version {row['feature_version']}, not {FEATURE_VERSION}"
                raise SystemExit(f"{told}; measure the images again")
            right = row["iou"] >= RIGHT if "iou" in row else row["label"] == "approved"
            source, kind = row.get("source", f"{path}:{number}"), row.get("kind", NATURAL)
            seen = Features(**row["features"])
            grey = row.get("grey", seen.disagreement is not None)
            found.append(Measured(source, kind, seen, right, row.get("people", False), grey))
    return found


# --- fit


def fitted(rows: Sequence[Measured], look: str) -> Fitted:
    names, values = matrix(rows, look)
    failed = np.array([not row.right for row in rows])
    kinds = np.array([row.kind for row in rows])
    middle, high = np.percentile(values[~failed], (50, 90), axis=0)
    units = np.where(high - middle < LEAST_UNIT, np.inf, high - middle)
    total = ((values - middle) / units).sum(axis=1, keepdims=True)
    slope, _ = newton(total, failed, importance(failed, kinds, TRAINED_SHARE))
    weights = max(float(slope), 0.0) / units
    doubts = values @ weights
    prior = importance(failed, kinds, SHARE)
    return Fitted(names, weights, float(newton(np.zeros((len(rows), 0)), failed, prior, doubts)[-1]))


def matrix(rows: Sequence[Measured], look: str) -> tuple[tuple[str, ...], Floats]:
    every = [terms(row.features) for row in rows]
    names = tuple(name for name in every[0] if look == "second_look" or name != REFRAMED)
    return names, np.array([[each[name] for name in names] for each in every])


def importance(failed: Mask, kinds: NDArray[np.str_], share: float) -> Floats:
    """Weights of the images by which failures make up `share`, where that is more than the natural ones do: made
    failures, each kind alike; where there are none, natural ones. Images that are right weigh 1."""
    weight = np.ones(len(failed))
    natural = kinds == NATURAL
    wanted = share / (1 - share) * int((~failed).sum()) - int((failed & natural).sum())
    present = [kind for kind in np.unique(kinds[failed & ~natural]) if kind != NATURAL]
    for kind in present:
        these = failed & (kinds == kind)
        weight[these] = max(wanted, 1.0) / len(present) / int(these.sum())
    return weight


def newton(values: Floats, failed: Mask, weight: Floats, offset: Floats | float = 0.0) -> Floats:
    """Coefficients of a logistic regression, the bias last and free of penalty."""
    inputs = np.column_stack([values, np.ones(len(values))])
    penalty = np.diag([PENALTY] * values.shape[1] + [0.0])
    found = np.zeros(inputs.shape[1])
    for _ in range(MOST_NEWTON):
        likely = 1 / (1 + np.exp(-(inputs @ found + offset)))
        slope = inputs.T @ (weight * (likely - failed)) + penalty @ found
        bend = (inputs * (weight * likely * (1 - likely))[:, None]).T @ inputs + penalty
        step = np.linalg.solve(bend + 1e-9 * np.eye(len(found)), slope)
        found -= np.clip(step, -5, 5)
        if np.abs(step).max() < CLOSE:
            break
    return found


# --- judge


def held_out(rows: Sequence[Measured], look: str) -> Floats:
    """Doubt of every image by fits to other photographs and, for a made one, without its kind."""
    sources = sorted({row.source for row in rows})
    kinds = sorted({row.kind for row in rows})
    _, values = matrix(rows, look)
    doubts = np.zeros(len(rows))
    for order in range(ORDERS):
        dealt = np.random.default_rng(order).permutation(len(sources)) % FOLDS
        fold = dict(zip(sources, dealt, strict=True))
        for number in range(FOLDS):
            for kind in kinds:
                test = [at for at, row in enumerate(rows) if fold[row.source] == number and row.kind == kind]
                seen = [row for row in rows if fold[row.source] != number and (row.kind != kind or row.kind == NATURAL)]
                if test:
                    doubts[test] += fitted(seen, look).doubts(values[test]) / ORDERS
    return doubts


def thinned(rows: Sequence[Measured], random: np.random.Generator, share: float = SHARE) -> NDArray[np.intp]:
    """Places of the images that stay: made failures only as far as `share` asks for, equally many of each kind."""
    failures: dict[str, list[int]] = {}
    stay = []
    for at, row in enumerate(rows):
        if row.right or row.kind == NATURAL:
            stay.append(at)
        else:
            failures.setdefault(row.kind, []).append(at)
    natural = sum(not rows[at].right for at in stay)
    wanted = max(0, round(share / (1 - share) * (len(stay) - natural)) - natural)
    decks = [list(random.permutation(each)) for _, each in sorted(failures.items())]
    for turn in range(wanted):
        deck = decks[turn % len(decks)] if decks else []
        stay += [int(deck.pop())] if deck else []
    return np.array(stay)


def judged(rows: Sequence[Measured], scores: Floats, share: float = SHARE) -> dict[str, Any]:
    """Found shares with intervals by bootstrap over photographs, each thinned anew; AURC; and by kind."""
    failed = np.array([not row.right for row in rows])
    points = [thinned(rows, np.random.default_rng(seed), share) for seed in range(THINNINGS)]
    found = np.mean([found_by(scores[at], failed[at], REVIEWED) for at in points], axis=0)
    spread = [found_by(scores[at], failed[at], REVIEWED) for at in resampled(rows, share)]
    low, high = np.percentile(spread, (2.5, 97.5), axis=0)
    kinds: dict[str, list[float]] = {}
    for at in points:
        lowest = at[np.argsort(scores[at], kind="stable")[: max(1, round(0.1 * len(at)))]]
        for kind in {rows[each].kind for each in at if failed[each]}:
            mine = [each for each in at if failed[each] and rows[each].kind == kind]
            kinds.setdefault(kind, []).append(len(set(mine) & set(lowest)) / len(mine))
    return {
        "images": len(points[0]),
        "failures": int(failed[points[0]].sum()),
        "found": {
            f"{reviewed:.0%}": [round(float(v), 3) for v in each]
            for reviewed, *each in zip(REVIEWED, found, low, high, strict=True)
        },
        "aurc": round(float(np.mean([aurc(scores[at], failed[at]) for at in points])), 4),
        "ideal": round(float(np.mean([aurc(-failed[at].astype(float), failed[at]) for at in points])), 4),
        "kinds": {kind: round(float(np.mean(shares)), 3) for kind, shares in sorted(kinds.items())},
    }


def resampled(rows: Sequence[Measured], share: float) -> Iterator[NDArray[np.intp]]:
    random = np.random.default_rng(0)
    places: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        places.setdefault(row.source, []).append(at)
    sources = sorted(places)
    for _ in range(RESAMPLES):
        drawn = [at for number in random.integers(0, len(sources), len(sources)) for at in places[sources[number]]]
        chosen = thinned([rows[at] for at in drawn], random, share)
        yield np.array(drawn)[chosen]


def doubted(rows: Sequence[Measured]) -> dict[str, Floats]:
    """Held out: without a second look, with one at all images, and at those that the service looks at again."""
    plain = held_out(rows, "plain")
    second, looked = plain.copy(), np.array([row.looked_at for row in rows])
    if looked.any():
        second[looked] = held_out([row for row in rows if row.looked_at], "second_look")
    grey = np.array([row.grey for row in rows])
    return {"none": plain, "at all": second, "as the service": np.where(grey, second, plain)}


def document(rows: Sequence[Measured], model: str) -> dict[str, Any]:
    looked = [row for row in rows if row.looked_at] or rows
    return {
        "version": VERSION,
        "feature_version": FEATURE_VERSION,
        "default": model,
        "models": {model: {look: fitted(of, look).document() for look, of in zip(LOOKS, (rows, looked), strict=True)}},
    }


def fit(options: argparse.Namespace) -> Report:
    every = read(options.files)
    rows = [row for row in every if row.features.area > 0]
    if len({row.right for row in rows}) < 2:
        raise SystemExit("a fit needs images whose mattes are right and images whose mattes are not; give both")
    doubts = doubted(rows)
    everything = np.ones(len(rows), bool)
    parts = {
        "all": (everything, SHARE),
        "natural alone": (np.array([row.kind == NATURAL for row in rows]), SHARE),
        "people": (np.array([row.people for row in rows]), SHARE),
    }
    parts |= {f"all, {share:.0%} of which fail": (everything, share) for share in OTHER_SHARES}
    found, shown = {}, []
    for part, (chosen, share) in parts.items():
        some = [row for row, here in zip(rows, chosen, strict=True) if here]
        found[part] = {look: judged(some, -values[chosen], share) for look, values in doubts.items()}
        lines = [_line(look, each) for look, each in found[part].items()]
        heads = [f"lowest {reviewed:.0%}" for reviewed in REVIEWED]
        shown.append(table(part, "second look", "images", "failures", *heads, "AURC", "ideal", rows=lines))
    kinds = sorted({row.kind for row in rows})
    lines = [(look, *(each["kinds"].get(kind) for kind in kinds)) for look, each in found["all"].items()]
    shown.append(table("of each kind's failures, found in the lowest 10%", "second look", *kinds, rows=lines))
    counts = [
        (
            kind,
            len(of),
            sum(not row.right for row in of),
            sum(row.features.area == 0 for row in every if row.kind == kind),
        )
        for kind in kinds
        if (of := [row for row in rows if row.kind == kind])
    ]
    shown.append(table("measured", "kind", "with a subject", "failures", "without", rows=counts))
    coefficients = document(rows, options.model)
    if options.write:
        TARGET.write_text(json.dumps(coefficients, indent=1) + "\n", encoding="utf-8")
    return Report(shown, {"coefficients": coefficients, "found": found})


def _line(look: str, found: dict[str, Any]) -> tuple[object, ...]:
    cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in found["found"].values()]
    return look.replace("_", " "), found["images"], found["failures"], *cells, found["aurc"], found["ideal"]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "fit_confidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="u2netp", help="name, folder or file (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    to_measure = commands.add_parser("measure", help="features and IoU of every image and its made failures")
    to_measure.add_argument("--folder", type=Path, default=Path(SHARED) / "eval", help="photos/ and gt/")
    to_measure.add_argument("--each", type=int, default=3, help="images made of a photograph and a kind (default: 3)")
    to_measure.add_argument("--seed", type=int, default=1, help="of made images (default: 1)")
    to_measure.add_argument("--quick", action="store_true", help="two photographs: does it work at all?")
    to_measure.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines")
    to_fit = commands.add_parser("fit", help="coefficients, and what they find in images not fitted to")
    to_fit.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of measure, or of rmbgd review export")
    to_fit.add_argument("--write", action="store_true", help="keep the coefficients in the package")
    options = parser.parse_args(words)
    if options.command == "measure":
        measure(options)
        return 0
    report = fit(options)
    Console().print(report.text(), markup=False, highlight=False, soft_wrap=True, end="")
    print(json.dumps(report.found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
