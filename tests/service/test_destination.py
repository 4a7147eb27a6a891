"""Which images `rmbgd once` takes, and where their cutouts go."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmbgd import naming as names
from rmbgd.errors import ConfigError
from rmbgd.naming import FORMATS
from rmbgd.service import destination
from rmbgd.service.destination import InputImage, RunPlan, plan

KNOWN = ".png, .webp, .tiff, .jpg"
GIF = f"GIF is no output format; use {KNOWN}, or a folder name (ending in /)"
FOLDER = f"name a folder, or for one image a file that ends in {KNOWN}"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some files, a few with one stem, and the folder `there`."""
    for name in ("a.jpg", "a.png", "b/a.jpg", "b/c/a.jpg", "b/.hidden/a.jpg", "there/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(words: str, asked: str | None = None) -> list[str]:
    *sources, output = words.split()
    with pytest.raises(ConfigError) as caught:
        plan(sources, output, asked=asked).outputs(".png")
    return caught.value.problems


def outputs(words: str, extension: str = ".png") -> dict[str, str]:
    """What each input is called -> where its cutout goes, as it is called."""
    *sources, output = words.split()
    found = plan(sources, output)
    return {image.shown: found.shown_output(name) for image, name in found.outputs(extension).items()}


@pytest.mark.parametrize(
    ("words", "asked", "said"),
    [
        ("nope.jpg out", None, ["nope.jpg: no such file or directory"]),
        ("no1 a.jpg no2 out", None, ["no1: no such file or directory", "no2: no such file or directory"]),
        ("a.jpg result.gif", None, [f"result.gif: {GIF}"]),
        ("b result.gif", None, [f"result.gif: {GIF}"]),
        ("a.jpg x.webp", "png", ["x.webp would hold a PNG; leave --format out, or give it another suffix"]),
        ("a.jpg a.png out.jpg", None, ["out.jpg: one file cannot hold several cutouts; name a folder"]),
        ("b out.jpg", None, ["out.jpg: one file cannot hold several cutouts; name a folder"]),
        ("a.jpg a.png -", None, ["standard output takes one cutout; name a folder for several"]),
        ("a.png a.png", None, ["a.png: IN and OUT are the same file; name another"]),
        ("a.jpg a.png .", None, ["a.png: IN and OUT are the same file; name another"]),
        ("b b", None, ["b: results would be written among the sources; name another folder"]),
        ("a.jpg b b/../b", None, ["b/../b: results would be written among the sources; name another folder"]),
        ("b there/x.txt/", None, [f"there/x.txt/: is a file; {FOLDER}"]),
        ("/dev/null out", None, ["/dev/null: neither a file nor a folder; pipe it in, and write - for it"]),
    ],
)  # fmt: skip
def test_mistake_in_the_paths_is_told(words: str, asked: str | None, said: list[str]) -> None:
    assert said == problems(words, asked)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a.jpg out", {"a.jpg": "out/a.png"}),
        ("a.jpg there", {"a.jpg": "there/a.png"}),
        ("a.jpg result.gif/", {"a.jpg": "result.gif/a.png"}),
        ("a.jpg shots.v2", {"a.jpg": "shots.v2/a.png"}),
        ("a.jpg 2026.11.28", {"a.jpg": "2026.11.28/a.png"}),
        ("a.jpg x.png", {"a.jpg": "x.png"}),
        ("a.jpg new/x.PNG", {"a.jpg": "new/x.PNG"}),
        ("b out", {"a.jpg": "out/a.png", "c/a.jpg": "out/c/a.png"}),
        ("empty out", {}),
        ("a.jpg a.png out", {"a.jpg": "out/a.png", "a.png": "out/a_png.png"}),
        (
            "a.jpg b/a.jpg b/c/a.jpg out",
            {"a.jpg": "out/a.png", "b/a.jpg": "out/a_jpg.png", "b/c/a.jpg": "out/a_jpg~2.png"},
        ),
        ("a.jpg ./a.jpg a.jpg out", {"a.jpg": "out/a.png"}),
        ("a.jpg b out", {"a.jpg": "out/a.png", "b/a.jpg": "out/b/a.png", "b/c/a.jpg": "out/b/c/a.png"}),
        ("b b/c out", {"b/a.jpg": "out/b/a.png", "b/c/a.jpg": "out/b/c/a.png"}),
        ("b b/c", {"a.jpg": "b/c/a.png"}),
        (
            ". there",
            {"a.jpg": "there/a.png", "a.png": "there/a_png.png"}
            | {"b/a.jpg": "there/b/a.png", "b/c/a.jpg": "there/b/c/a.png"},
        ),
    ],
)  # fmt: skip
def test_each_image_has_an_output_of_its_own(words: str, expected: dict[str, str]) -> None:
    """What lies in the output folder is no source, and a file that is named twice is done once."""
    assert expected == outputs(words)


@pytest.mark.parametrize(("suffix", "form"), FORMATS.items())
def test_suffix_of_the_output_is_its_format(suffix: str, form: str) -> None:
    assert (form, f"x{suffix}") == ((found := plan(["a.jpg"], f"x{suffix}")).format, found.single)
    assert form == plan(["a.jpg"], f"x{suffix.upper()}", asked=form).format


def test_link_that_is_named_is_followed_and_one_that_is_found_is_not(place: Path) -> None:
    (place / "shoe.jpg").symlink_to("b/c/a.jpg")
    (place / "all").symlink_to("b")
    (place / "b" / "link.jpg").symlink_to("a.jpg")
    (image,) = plan(["shoe.jpg"], "out").images
    assert (str(place / "b" / "c"), "a.jpg", "shoe.jpg", "shoe.jpg") == (
        image.root,
        image.path,
        image.shown,
        image.name,
    )
    assert {"a.jpg": "out/a.png", "c/a.jpg": "out/c/a.png"} == outputs("all out")


def test_name_that_is_no_text_is_taken(place: Path) -> None:
    name = os.fsdecode(b"\xff\xe4.jpg")
    (place / "b" / name).write_text("x")
    assert f"out/{name[:-4]}.png" == outputs("b out")[name]


def test_names_are_looked_for_once_however_many_are_alike(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of thousands of sub-folders with a front.jpg each must not take minutes."""
    images = [InputImage(str(place), f"{number}/front.jpg", "", "front.jpg") for number in range(300)]
    tried: list[int] = []

    def versions(name: str) -> Iterator[str]:
        for number in itertools.count(2):
            tried.append(number)
            yield f"{name}~{number}"

    fake = SimpleNamespace(output_names=names.output_names, versions=versions, is_film=names.is_film)
    monkeypatch.setattr(destination, "names", fake)
    outputs = RunPlan(images, place, None, "out", None, []).outputs(".png")
    assert (300, 299) == (len(set(outputs.values())), len(tried))
