"""Pairs by name: whatever the suffix, in sub-folders, under the names that the service gives; categories; frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmbgd.errors import ConfigError
from rmbgd.evaluate.pairs import MaskPair, categorized, images_below, in_sequence, paired


def filled(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return str(folder)


def matched(tmp_path: Path, predictions: list[str], truths: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """Names of the truths with their predictions, and predictions without one, as below their folder."""
    found, true = tmp_path / "found", tmp_path / "true"
    pairs, left = paired(filled(found, *predictions), filled(true, *truths))
    below = {pair.name: pair.prediction and str(Path(pair.prediction).relative_to(found)) for pair in pairs}
    return below, [str(Path(path).relative_to(found)) for path in left]


def test_images_belong_together_that_have_one_path_but_for_the_suffix(tmp_path: Path) -> None:
    predictions, truths = ["a.webp", "s/b.PNG", "t/b.png"], ["a.png", "s/b.tif", "c.png"]
    expected = {"a": "a.webp", "s/b": "s/b.PNG", "c": None}
    assert (expected, ["t/b.png"]) == matched(tmp_path, predictions, truths)


def test_names_that_the_service_gives_lead_to_their_truth(tmp_path: Path) -> None:
    predictions, truths = ["a_jpg.png", "s/b~2.png", "c_JPG~3.png"], ["a.png", "s/b.png", "c.png"]
    expected = {"a": "a_jpg.png", "s/b": "s/b~2.png", "c": "c_JPG~3.png"}
    assert (expected, []) == matched(tmp_path, predictions, truths)


def test_the_very_name_goes_before_those_that_the_service_gives(tmp_path: Path) -> None:
    predictions, truths = ["a.png", "a_jpg.png", "a~2.png", "b_jpg.png"], ["a.png", "a_jpg.png", "b_jpg.png", "b.png"]
    expected = {"a": "a.png", "a_jpg": "a_jpg.png", "b_jpg": "b_jpg.png", "b": None}
    assert (expected, ["a~2.png"]) == matched(tmp_path, predictions, truths)


def test_two_files_are_a_pair_whatever_they_are_called(tmp_path: Path) -> None:
    folder = filled(tmp_path, "x.png", "y.webp")
    assert ([MaskPair("y", f"{folder}/y.webp", f"{folder}/x.png")], []) == paired(f"{folder}/x.png", f"{folder}/y.webp")
    with pytest.raises(ConfigError, match="name two folders, or two files"):
        paired(f"{folder}/x.png", folder)


def test_only_images_that_are_not_hidden_are_taken_and_links_too(tmp_path: Path) -> None:
    filled(tmp_path, "b.png", "a.json", "a.txt", ".a.png", ".git/a.png", "s/a.jpeg")
    (tmp_path / "l.png").symlink_to("b.png")
    assert ["b.png", "l.png", "s/a.jpeg"] == images_below(str(tmp_path))


def test_the_first_folder_is_the_category(tmp_path: Path) -> None:
    folder = filled(tmp_path, "hair/x/a.png", "glass/b.png", "c.png")
    pairs, _ = paired(folder, folder)
    assert {"hair/x/a": "hair", "glass/b": "glass", "c": ""} == {pair.name: pair.category for pair in pairs}


def test_a_table_gives_categories_by_name_with_and_without_folder_and_suffix(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text('\ufeffname,category,more\na.png,"hair, fur",1\n\ns/b,glass\nc, glass \nd.1.png,x\n')
    pairs = [MaskPair(name, "", None, "before") for name in ("a", "s/b", "t/c", "d.1", "e")]
    found, unknown = categorized(pairs, table)
    assert ["hair, fur", "glass", "glass", "x", ""] == [pair.category for pair in found]
    assert 1 == unknown  # its heading


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,hair\nb\n", "row 2 has no second column; write name,category"),
        ('"' + "a" * 200_000, "this is no CSV file: "),
    ],
)
def test_a_table_that_is_none_is_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigError, match=f"table.csv: {said}"):
        categorized([], tmp_path / "table.csv")


def test_frames_come_in_natural_order_each_folder_for_itself() -> None:
    pairs = [MaskPair(name, "", None) for name in ("b/f1", "a/f10", "a/f2", "a/f1", "a/g")]
    found = [(pair.name, before and before.name) for pair, before in in_sequence(pairs)]
    assert [("a/f1", None), ("a/f2", "a/f1"), ("a/f10", "a/f2"), ("a/g", "a/f10"), ("b/f1", None)] == found
