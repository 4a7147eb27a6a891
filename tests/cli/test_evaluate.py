"""`rmbgd eval`: tables, JSON and the page from files, exit statuses, warnings, and an end by Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmbgd.errors import Exit
from rmbgd.service import oneshot
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import in_process
from tests.evaluate.cases import NAMES, case
from tests.imaging.builders import saved
from tests.support.schemas import problems
from tests.support.terminal import Terminal


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions as WebP, one of them named by the service, and truths as PNG, in two sub-folders."""
    for number, name in enumerate(NAMES):
        category = ("hair", "glass")[number % 2]
        for side, pixels in zip(("found", "true"), case(name), strict=True):
            path = tmp_path / side / category / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rgba = np.dstack([pixels] * 4)
            path.with_suffix(".png" if side == "true" else ".webp").write_bytes(
                saved(pixels, "PNG") if side == "true" else saved(rgba, "WEBP", lossless=True, exact=True)
            )
    renamed = tmp_path / "found" / "hair" / "noise.webp"
    renamed.rename(renamed.with_name("noise_jpg~2.webp"))
    return tmp_path / "found", tmp_path / "true"


def test_tables_have_every_figure_and_category(folders: tuple[Path, Path], rmbgd: Any) -> None:
    status, out, err = rmbgd("eval", *folders)
    assert (Exit.OK, "") == (status, err)
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    document = json.loads(rmbgd("eval", *folders, "--json")[1])
    mean = document["groups"][0]["figures"]["s_measure"]
    assert [f"{mean[key]:.4f}" for key in ("mean", "low", "high")] == [lines["S-measure"][n] for n in (1, 2, 4)]
    assert ["higher", "6"] == lines["S-measure"][-2:]
    assert ["lower", "1"] == lines["SAD, band"][-2:]
    assert "3" == lines["glass"][1] == lines["hair"][1]


def test_json_is_one_object_as_its_schema_says(folders: tuple[Path, Path], rmbgd: Any) -> None:
    (folders[0] / "more.png").write_bytes(b"")
    status, out, _ = rmbgd("eval", *folders, "--json", "--sequence")
    document = json.loads(out)
    assert (Exit.OK, []) == (status, problems("evaluation", document))
    assert [None, "glass", "hair"] == [group["category"] for group in document["groups"]]
    assert 4 == document["groups"][0]["figures"]["dtssd"]["images"]
    assert [str(folders[0] / "more.png")] == document["without_truth"]
    assert sorted(NAMES) == sorted(image["name"].partition("/")[2] for image in document["images"])


def test_risk_is_told_by_photographs_and_by_a_log(folders: tuple[Path, Path], tmp_path: Path, rmbgd: Any) -> None:
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / ("hair", "glass")[number % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(np.dstack([case(name)[1]] * 3), "PNG"))
    status, out, _ = rmbgd("eval", *folders, "--risk", tmp_path / "photos", "--json")
    document = json.loads(out)
    assert (Exit.OK, [], 6) == (status, problems("evaluation", document), document["risk"]["images"])
    fails = sum(image["figures"].get("iou", 1) < 0.7 for image in document["images"])
    assert (fails, [1, 1, 1]) == (
        document["risk"]["failures"],
        [each["images"] for each in document["risk"]["reviewed"]],
    )
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"output": f"/srv/hair/{name}.png", "score": 0.5}) + "\n" for name in NAMES))
    out = rmbgd("eval", *folders, "--risk", log)[1]
    assert "of 3 images fail (IoU below 0.7); AURC " in out
    assert "lowest 10%" in out


def test_a_second_look_scores_as_the_service_does(
    folders: tuple[Path, Path], tmp_path: Path, rmbgd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real pipeline with a fake engine; two equal photographs both have a score, and so has a black one."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / ("hair", "glass")[number % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = case(NAMES[0] if number < 2 else name)[1] * (number < 5)
        path.write_bytes(saved(np.dstack([pixels] * 3), "PNG"))
    made = in_process(lambda context: FakeBackend(context.arena.block))
    monkeypatch.setattr(oneshot.once, "__kwdefaults__", oneshot.once.__kwdefaults__ | {"build_devices": made})
    asked = ("eval", *folders, "--risk", tmp_path / "photos", "--second-look", "--model", "u2netp", "--json")
    status, out, _ = rmbgd(*asked)
    assert (Exit.OK, 6) == (status, json.loads(out)["risk"]["images"])


@pytest.mark.parametrize("options", [(), ("--risk", "log.jsonl", "--model", "u2netp"), ("--risk", ".")])
def test_a_second_look_needs_photographs_and_a_model(folders: Any, rmbgd: Any, options: tuple[str, ...]) -> None:
    status, _, err = rmbgd("eval", *folders, "--second-look", *options)
    assert status == Exit.USAGE
    assert "--second-look needs --model NAME" in err


def test_what_cannot_be_compared_is_listed_and_makes_the_status_1(folders: tuple[Path, Path], rmbgd: Any) -> None:
    (folders[0] / "hair" / "soft.webp").write_bytes(b"RIFF and so on, no image at all")
    (folders[0] / "glass" / "holes.webp").unlink()
    status, out, err = rmbgd("eval", *folders)
    assert (Exit.FAILED, "") == (status, err)
    assert "2 not counted:" in out
    assert "  glass/holes: missing_prediction: there is no prediction of this name" in out
    assert f"  hair/soft: unidentified: {folders[0]}/hair/soft.webp: " in out
    assert ["higher", "4"] == out.partition("S-measure")[2].splitlines()[0].split()[-2:]


def test_the_page_is_written(folders: tuple[Path, Path], tmp_path: Path, rmbgd: Any) -> None:
    target = tmp_path / "worst.html"
    status, out, err = rmbgd("eval", *folders, "--html", target, "--limit", "2", "--json")
    assert (Exit.OK, 6) == (status, len(json.loads(out)["images"]))
    assert err.startswith(f"{target}: 2 images; ")
    assert 6 == target.read_text().count("<img")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--model", "birefnet", "--dataset", "dis-te1"],
            "birefnet was trained on DIS-TE1: figures on dis-te1 say little",
        ),
        (["--model", "birefnet", "--dataset", "DIS-VD"], ""),
        (["--model", "birefnet-hr", "--dataset", "DIS-VD"], "it is not published what birefnet-hr was trained on"),
        (
            ["--model", "birefnet-matting"],
            "birefnet-matting was trained on AIM-500: figures on aim500 say little about it",
        ),
    ],
)
def test_a_test_set_that_the_model_has_seen_is_told(
    words: list[str], said: str, folders: tuple[Path, Path], tmp_path: Path, rmbgd: Any
) -> None:
    """Named by --dataset, or by a folder, or the one above it."""
    (tmp_path / "aim500").mkdir()
    truth = folders[1].rename(tmp_path / "aim500" / "gt")
    status, out, err = rmbgd("eval", folders[0], truth, *words, "--json")
    assert (Exit.OK, bool(said)) == (status, bool(err))
    assert said in err
    assert bool(json.loads(out)["overlap"]) is ("was trained on" in said and "published" not in said)


def test_mistakes_are_told_in_a_line(folders: tuple[Path, Path], tmp_path: Path, rmbgd: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for words, status, said in (
        (("nope", folders[1]), Exit.USAGE, "nope: no such file or directory"),
        ((*folders, "--model", "birefnett"), Exit.USAGE, "did you mean birefnet"),
        ((*folders, "--ignore", "256"), Exit.USAGE, "'256' is not between 0 and 255"),
        ((folders[0], other), Exit.FAILED, f"{other}: there are no images in it; name a folder of masks"),
        (
            (other, folders[1]),
            Exit.FAILED,
            f"{other}: no image in it has the name of one in {folders[1]}; name another",
        ),
    ):
        found, out, err = rmbgd("eval", *words)
        assert (status, "") == (found, out)
        assert said in err


def test_categories_come_from_a_table(folders: tuple[Path, Path], tmp_path: Path, rmbgd: Any) -> None:
    (tmp_path / "table.csv").write_text("name,category\nsoft,edges\nnoise,edges\n")
    status, out, err = rmbgd("eval", *folders, "--categories", tmp_path / "table.csv", "--json")
    assert (Exit.OK, [None, "edges"]) == (status, [group["category"] for group in json.loads(out)["groups"]])
    assert "table.csv: 1 of its names are no image in " in err


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """While the bar moves, with more images than it gets through."""
    truth = np.zeros((700, 700), np.uint8)
    truth[200:500, 200:500] = 255
    for side in ("found", "true"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "0.png").write_bytes(saved(truth, "PNG"))
        for number in range(1, 3000):
            os.link(tmp_path / side / "0.png", tmp_path / side / f"{number}.png")
    command = (sys.executable, "-m", "rmbgd", "eval", str(tmp_path / "found"), str(tmp_path / "true"))
    with Terminal(*command) as terminal:
        terminal.read_until("/3000")
        terminal.press("\x03")
        assert Exit.INTERRUPTED == terminal.wait()
        assert "Traceback" not in terminal.raw
        assert "S-measure" not in terminal.raw
