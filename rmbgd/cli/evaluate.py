"""`rmbgd eval`: how good cutouts or masks are against ground truth, as tables, JSON and a page of the worst."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from rmbgd import fs
from rmbgd.cli.main import usage_error
from rmbgd.cli.parser import between
from rmbgd.cli.report import check_page, save_page
from rmbgd.cli.table import print_table
from rmbgd.config.load import overlay
from rmbgd.config.settings import LimitSettings
from rmbgd.errors import ConfigError, Exit, Reason, RmbgdError
from rmbgd.evaluate import page
from rmbgd.evaluate.metrics import FIGURES
from rmbgd.evaluate.pairs import MaskPair, categorized, paired
from rmbgd.evaluate.risk import RIGHT, RiskCurve, failed, risk_curve, scores_for
from rmbgd.evaluate.run import Judge, JudgedPair
from rmbgd.evaluate.sequence import by_sequence, size_changes
from rmbgd.evaluate.summary import EvaluatedGroup, Evaluation, interval, shown
from rmbgd.models import licences
from rmbgd.models.registry import lookup, overlap
from rmbgd.report.page import prepare
from rmbgd.service.destination import plan
from rmbgd.telemetry.captured_output import StderrCapture
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable

LIMIT, LIMIT_MAXIMUM = 60, 500  # images on a page; some 8 kB each
LINES = 10  # of each kind below the tables; JSON has them all
LEAST_SCORE = 1e-6  # scores have four digits: only one of 0 is less


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "cutouts (RGBA) or masks (grey), a folder or one file; paired with TRUTH by name, in sub-folders too"
    parser.add_argument("predictions", metavar="PREDICTIONS", help=about)
    parser.add_argument(
        "truth", metavar="TRUTH", help="true masks of the same sizes; the first sub-folder is a category"
    )
    parser.add_argument(
        "--categories", metavar="FILE", type=Path, help="take categories from a CSV file: name,category"
    )
    parser.add_argument(
        "--sequence",
        action="store_true",
        help="the images of a folder are frames: measure flicker too",
    )
    about = "leave out pixels of TRUTH with this value of 8 bits, such as 128 in trimaps"
    parser.add_argument("--ignore", metavar="VALUE", type=between(0, 255), help=about)
    parser.add_argument("--model", metavar="NAME", help="warn where this model was trained on the test set")
    parser.add_argument("--dataset", metavar="NAME", help="name of the test set (default: the name of TRUTH's folder)")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write one page with the worst images, for any browser"
    )
    text = f"images on the page, the worst first (default: %(default)s, at most {LIMIT_MAXIMUM})"
    parser.add_argument("--limit", metavar="N", type=between(1, LIMIT_MAXIMUM), default=LIMIT, help=text)
    about = "what reviewing the lowest scores finds: a folder of the photographs, or a log of image.done with scores"
    parser.add_argument("--risk", metavar="WHERE", help=about)
    about = "with --risk PHOTOS: make the cutouts of --model once more, for scores as the service has them"
    parser.add_argument("--second-look", action="store_true", help=about)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(options: argparse.Namespace) -> int:
    """Raises RmbgdError and OSError for paths that may not be read or written."""
    try:
        pairs, without_truth = _pairs(options)
        if options.model is not None:
            lookup(options.model)
    except ConfigError as error:
        return usage_error("eval", error)
    if options.html is not None:
        page.template()  # before the work: it raises ConfigError where jinja2 is not installed
        check_page(options.html)
    dataset, met = _met(options)
    judge = Judge(LimitSettings(), options.ignore)
    prepare(judge.limits)
    with StderrCapture(lambda *_, **__: None):  # what libtiff has to say of hostile files
        frames: list[tuple[MaskPair, MaskPair | None]] = [(pair, None) for pair in pairs]
        warnings: list[str] = []
        if options.sequence:
            frames, warnings = by_sequence(pairs, categories=options.categories is not None)
        judged = _judged(judge, frames)
        found = Evaluation(options.predictions, options.truth, dataset, options.model, met, judged, without_truth)
        curve = _risk(options, found, judge.limits)
        cards = [] if options.html is None else list(page.cards(found.worst(options.limit), judge))
    if options.html is not None:
        size = save_page(options.html, page.render(found, cards))
        print(printable(f"{options.html}: {len(cards)} images; {size / 1e6:.1f} MB"), file=sys.stderr)
    if options.sequence:
        warnings += size_changes([(each.pair.name, each.width, each.height) for each in found.usable])
        _warn(warnings)
    if options.json:
        print(to_json(found.document() | ({} if curve is None else {"risk": asdict(curve)})))
    else:
        _print(found, sequences=options.sequence)
        if curve is not None:
            _print_risk(curve)
    return Exit.FAILED if found.unusable or warnings else Exit.OK


def _pairs(options: argparse.Namespace) -> tuple[list[MaskPair], list[str]]:
    """Raises ConfigError for what is wrong with the command line, RmbgdError where there is nothing to evaluate."""
    absent = [path for path in (options.predictions, options.truth) if not os.path.lexists(path)]
    if absent:
        raise ConfigError([f"{path}: no such file or directory" for path in absent])
    if options.second_look and (options.model is None or not os.path.isdir(options.risk or "")):
        raise ConfigError("--second-look needs --model NAME and --risk with the folder of the photographs")
    pairs, without_truth = paired(options.predictions, options.truth)
    if not pairs:
        raise RmbgdError(f"{options.truth}: there are no images in it; name a folder of masks")
    if all(pair.prediction is None for pair in pairs):
        raise RmbgdError(f"{options.predictions}: no image in it has the name of one in {options.truth}; name another")
    if options.categories is not None:
        pairs, unknown = categorized(pairs, options.categories)
        if unknown:
            said = f"{unknown} of its names are no image in {options.truth}"
            print(printable(f"rmbgd eval: {options.categories}: {said}"), file=sys.stderr)
    return pairs, without_truth


def _met(options: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """The name of the test set, and what of it the model was trained on, which is said on stderr."""
    folder = Path(options.truth).resolve()
    names = [options.dataset] if options.dataset else [folder.name, folder.parent.name]  # DIS-VD/gt
    if options.model is None:
        return names[0], ()
    dataset = next((name for name in names if overlap(options.model, name)), names[0])
    found = overlap(options.model, dataset)
    model = lookup(options.model)
    said = ""
    if found:
        said = f"{model.name} was trained on {', '.join(found)}: figures on {dataset} say little about it"
    elif not model.trained_on:
        said = f"it is not published what {model.name} was trained on; it may have seen these images"
    if said:
        print(printable(f"rmbgd eval: {said}"), file=sys.stderr)
    return dataset, found


def _judged(judge: Judge, pairs: list[tuple[MaskPair, MaskPair | None]]) -> list[JudgedPair]:
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        return list(bar.track(judge.all(pairs, fs.usable_cores()), len(pairs), description="comparing"))


def _warn(lines: list[str]) -> None:
    more = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
    for line in lines[:LINES] + more:
        print(printable(f"rmbgd eval: {line}"), file=sys.stderr)


def _print(found: Evaluation, *, sequences: bool) -> None:
    """sequences: the categories are, and their mean is shown too, in which each counts as much, however long."""
    everything, *categories = found.groups()
    mean, images = Column("mean", justify="right"), Column("images", justify="right")
    table = Table("figure", mean, "95 % interval", "better", images, box=None, pad_edge=False)
    for name, estimate in everything.figures.items():
        better = "higher" if FIGURES[name].higher_is_better else "lower"
        table.add_row(FIGURES[name].title, shown(estimate.mean), interval(estimate), better, str(estimate.images))
    if everything.figures:
        print_table(table)
    if categories:
        print()
        print_table(_by_category(categories, mean=sequences))
    lines = [f"{each.pair.name}: {each.reason}: {each.detail}" for each in found.unusable]
    _list("not counted", lines)
    _list("predictions without a truth", found.without_truth)


def _by_category(groups: list[EvaluatedGroup], *, mean: bool) -> Table:
    columns = [name for name in page.BY_CATEGORY if any(name in group.figures for group in groups)]
    heads = [Column(FIGURES[name].title, justify="right") for name in columns]
    table = Table("category", Column("images", justify="right"), *heads, box=None, pad_edge=False)
    for group in groups:
        means = [shown(group.figures[name].mean) if name in group.figures else "" for name in columns]
        table.add_row(Text(printable(group.category or "")), str(group.images), *means)
    if mean:
        known = {name: [group.figures[name].mean for group in groups if name in group.figures] for name in columns}
        means = [shown(sum(known[name]) / len(known[name])) for name in columns]
        table.add_row("mean of sequences", str(sum(group.images for group in groups)), *means)
    return table


def _risk(options: argparse.Namespace, found: Evaluation, limits: LimitSettings) -> RiskCurve | None:
    """None where nobody asked. Raises RmbgdError where no compared image has a score."""
    if options.risk is None:
        return None
    if options.second_look:
        scores = _scores_of_the_service(options.risk, options.model)
    else:
        pairs, model = [each.pair for each in found.usable], options.model or ""
        scores = scores_for(pairs, options.risk, options.truth, model, limits)
    ranked = [each for each in found.usable if each.pair.name in scores]
    if not ranked:
        raise RmbgdError(
            f"{options.risk}: it has no score of an image that was compared; name the folder of photographs"
        )
    return risk_curve([scores[each.pair.name] for each in ranked], [failed(each) for each in ranked])


def _scores_of_the_service(photographs: str, model: str) -> dict[str, float]:
    """By name. Cutouts are made in a folder that is removed. Raises RmbgdError, as where there are no weights."""
    from rmbgd.service import oneshot

    asked = {"recipe": {"model": model, "review_below": LEAST_SCORE, "sidecar": "never"}}
    config, recipe = overlay(None, "default", ("engine", "service"), asked)
    licences.require(lookup(model), config.service.models_directory)
    found: dict[str, float] = {}

    def hear(event: str, /, **keys: Any) -> None:
        if event == "image.done":
            found[os.path.splitext(keys["path"])[0]] = keys["score"]
        elif event == "image.failed" and keys["reason"] == Reason.NEEDS_REVIEW:  # nothing has a score below that
            found[os.path.splitext(keys["path"])[0]] = 0.0

    with tempfile.TemporaryDirectory(prefix="rmbgd-eval-") as scratch, Console().status("scoring the photographs"):
        oneshot.once(plan([photographs], scratch), recipe, engine=config.engine, service=config.service, emit=hear)
    return found


def _print_risk(curve: RiskCurve) -> None:
    right = Column("images", justify="right"), Column("failures found", justify="right")
    table = Table("reviewed", *right, "95 % interval", box=None, pad_edge=False)
    for each in curve.reviewed:
        bounds = "" if each.low is None or each.high is None else f"{shown(each.low)} to {shown(each.high)}"
        table.add_row(f"lowest {each.share:.0%}", str(each.images), shown(each.found), bounds)
    print()
    print_table(table)
    areas = f"AURC {shown(curve.aurc)}, ideal {shown(curve.ideal)}"
    print(f"{curve.failures} of {curve.images} images fail (IoU below {RIGHT}); {areas}")


def _list(title: str, lines: list[str]) -> None:
    if lines:
        more = [f"and {len(lines) - LINES} more (--json names all)"] if len(lines) > LINES else []
        print(f"\n{len(lines)} {title}:", *(f"  {printable(line)}" for line in lines[:LINES] + more), sep="\n")
