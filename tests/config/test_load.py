"""Settings: every one documented and bounded, every mistake reported, command line options over them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from rmbgd.config.load import Config, load, overlay, parse
from rmbgd.config.settings import Folder, Recipe
from rmbgd.errors import ConfigError
from tools import gen_reference

SETTINGS = [
    (f"{name}.{setting}", field)
    for name, _, model in gen_reference.sections()
    for setting, field in model.model_fields.items()
]
FOLDER = {"name": "shop", "input": "/a/in", "output": "/a/out", "failed": "/a/failed", "done": "/a/done"}


def problems(tables: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(tables)
    return caught.value.problems


@pytest.mark.parametrize(("name", "field"), SETTINGS)
def test_every_setting_is_documented_and_shown(name: str, field: FieldInfo) -> None:
    """With the reason for its default; a number with a unit and both bounds; and in the default file."""
    assert field.description, name
    if field.annotation in (int, float):
        assert gen_reference.unit_of(field), f"{name} has no unit"
        assert " to " in gen_reference.bounds_of(field), f"{name} lacks a bound"
    setting, text = name.rpartition(".")[2], gen_reference.default_toml()
    if name.startswith("preset."):  # there is none by default
        return
    shown = (f"\n{setting} = ", f"\n# {setting} =", f"\n# [[recipe.default.{setting}]]")
    assert any(each in text for each in shown), name


def test_sections_are_all_that_a_file_may_hold() -> None:
    """A table that the documentation forgets would never be found; each has a comment over it, its docstring."""
    assert all(issubclass(model, BaseModel) and model.__doc__ for _, _, model in gen_reference.sections())
    assert set(Config.model_fields) == {name for name, _, _ in gen_reference.sections()}


def test_default_file_is_the_defaults() -> None:
    """Reading the generated file gives every default, but for what the examples say."""
    examples = gen_reference.EXAMPLES
    folder = {key.partition(".")[2]: value for key, value in examples.items() if key.startswith("folder.")}
    service = {"log_file": examples["service.log_file"]}
    plain = parse({"service": service, "recipe": {"default": {}}, "folder": [folder]})
    assert plain == parse(tomllib.loads(gen_reference.default_toml()))


def test_nothing_set_is_a_usable_configuration() -> None:
    assert Config() == parse({})


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"intake": {"quiet_close": 1}}, "intake.quiet_close: unknown setting; did you mean 'quiet_closed'?"),
        ({"intakes": {}}, "intakes: unknown setting; did you mean 'intake'?"),
        ({"recipe": {"shop": {"formta": "png"}}}, "recipe.shop.formta: unknown setting; did you mean 'format'?"),
        ({"folder": [FOLDER | {"dnoe": "/x"}]}, "folder.0.dnoe: unknown setting; did you mean 'done'?"),
        ({"folder": [FOLDER | {"recipe": "defualt"}]}, "folder.0.recipe: no recipe 'defualt'; did you mean 'default'?"),
        ({"folder": [FOLDER, FOLDER]}, "folder.1.name: 'shop' is the name of another folder, too"),
        ({"service": {"log_file": "log"}}, "'log' is relative; write the whole path, starting with /"),
        ({"recipe": {"a": {"file_mode": "0755"}}}, "would make images executable"),
        ({"recipe": {"a": {"content": "mask", "mask_bits": 16, "format": "webp"}}}, "holds 8 bits only"),
        ({"limits": {"pixels": 200_000_000}}, "pipeline.arena_bytes: 536870912 bytes cannot hold one image"),
        ({"recipe": {"a": {"content": "mask", "mask_bits": 16, "format": "jpeg"}}}, "holds 8 bits only"),
        ({"gpu": {"grafs": True}}, "gpu.grafs: unknown setting; did you mean 'graphs'?"),
        ({"gpu": {"x": True}}, "gpu.x: unknown setting; known here: graphs, kernels, pinned_bytes, spare_bytes"),
        ({"pipeline": {"queue": 0}}, "pipeline.queue: must be at least 1 (is 0)"),
        ({"engine": {"threads": "2"}}, "engine.threads: must be a whole number, without quotes (is '2')"),
        ({"engine": {"threads": True}}, "engine.threads: must be a whole number, without quotes (is true)"),
        ({"pipeline": {"batch_maximum": True}}, "pipeline.batch_maximum: must be a whole number"),
        ({"recipe": {"a": {"mask_bits": 8.0}}}, "recipe.a.mask_bits: must be a whole number"),
        ({"health": {"hot": "83"}}, "health.hot: must be a number, without quotes (is '83')"),
        ({"health": {"hot": float("nan")}}, "health.hot"),
        ({"health": {"xid_lost": [True]}}, "health.xid_lost.0: must be a whole number"),
        ({"gpu": {"graphs": 1}}, "gpu.graphs: must be true or false, without quotes (is 1)"),
        ({"recipe": {"a": {"model": 1}}}, "recipe.a.model: must be a text, in quotes (is 1)"),
        ({"service": {"log_file": 1}}, "service.log_file: must be a path, in quotes (is 1)"),
        ({"service": {"log_file": "/a\0b"}}, "service.log_file: '/a\\x00b' has a NUL character"),
        ({"folder": FOLDER}, "folder: write [[folder]] with two brackets"),
        ({"engine": [{}]}, "engine: write [engine], with one bracket and once"),
        ({"recipe": {"format": "png"}}, "recipe.format: write [recipe.NAME] above the settings of a recipe"),
        ({"recipe": {"a b": {}}}, "recipe.a b: 'a b' is no name; use letters"),
    ],
)
def test_mistake_is_reported_with_place_and_remedy(tables: dict[str, Any], expected: str) -> None:
    (problem,) = problems(tables)
    assert expected in problem


def test_whole_number_is_a_number_and_a_path_is_a_text() -> None:
    """As TOML files have them, and as the code has them."""
    read = parse({"health": {"hot": 83}, "service": {"log_file": "/log"}})
    assert (83.0, Path("/log")) == (read.health.hot, read.service.log_file)
    assert read == parse({"health": {"hot": 83.0}, "service": {"log_file": Path("/log")}})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("white", "#ffffff"),
        ("RebeccaPurple", "#663399"),
        ("#FFF", "#ffffff"),
        ("#1a2", "#11aa22"),
        (" #00FF7f ", "#00ff7f"),
    ],
)
def test_colour_is_a_name_of_css_or_hex_in_any_case(written: str, read: str) -> None:
    assert read == Recipe(background=written).background


def test_share_may_be_written_in_per_cent() -> None:
    assert Recipe(crop_margin=0.1, empty_below=0.0005) == Recipe(crop_margin="10%", empty_below="0.05 %")


def test_jpeg_lies_on_the_background_unless_it_is_a_mask() -> None:
    asked = {
        (form, content): Recipe(format=form, content=content).flat
        for form in ("png", "jpeg")
        for content in ("rgba", "colour", "mask")
    }
    assert {("png", "colour"), ("jpeg", "rgba"), ("jpeg", "colour")} == {key for key, flat in asked.items() if flat}


KEPT = FOLDER | {"originals": "keep"}
BUCKET = {"name": "cloud", "input": "s3://shop/in", "output": "s3://shop/out", "failed": "s3://shop/failed"}
_IN_A_BUCKET = [
    ("shop/in", 'write "s3://BUCKET/PREFIX", or "s3://BUCKET" for all of it; did you mean "s3://shop/in"?'),
    ("s3://S/in", "no place in a bucket"),
    ("s3://shop/in//a", "no place in a bucket"),
]
SHAPED = {  # every text of a certain shape: a table, a wrong value, what the message says
    "engine.device": [
        ("gpu", 'write "auto", "cpu", "cuda", or "cuda:1" for GPU 1; did you mean "cuda"?'),
        ("GPU 1", 'did you mean "cuda:1"?'),
        ("cuda0", 'did you mean "cuda:0"?'),
        ("cdua", 'did you mean "cuda"?'),
        ("tape", "for GPU 1"),
    ],
    **{f"bucket.{role}": _IN_A_BUCKET for role in ("input", "output", "failed")},
    "s3.endpoint": [
        ("storage:9000", 'write "https://HOST:9000", or "" for Amazon S3; did you mean "https://storage:9000"?'),
        ("https://key:secret@storage", "no address of a storage"),
    ],
    "recipe.canvas": [
        ("2000", 'write width and height, like "2000x1500", or "" for none; did you mean "2000x2000"?'),
        ("800 X 600 px", 'did you mean "800x600"?'),
        ("0x0", 'or "" for none'),
    ],
    "recipe.model_sha256": [
        ("AB", "write its 64 digits, 0 to 9 and a to f"),
        ("AB" * 32, f'did you mean "{"ab" * 32}"?'),
    ],
    "recipe.background": [
        ("whit", """is no colour; did you mean white? write a CSS name or "#ffffff\""""),
        ("ffffff", 'did you mean "#ffffff"?'),
        ("#ff", 'is no colour; write a CSS name or "#ffffff"'),
        ("rgb(1, 2, 3)", 'write a CSS name or "#ffffff"'),
    ],
    "recipe.file_mode": [("rw-r-----", 'write it like "0640"')],
    "bucket.name": [("a b", "use letters, digits")],
    "bucket.recipe": [("a/b", "use letters, digits")],
    "folder.name": [("a b", "use letters, digits")],
    "folder.recipe": [("a/b", "use letters, digits")],
}


@pytest.mark.parametrize(("name", "value", "said"), [(name, *case) for name in SHAPED for case in SHAPED[name]])
def test_shape_of_a_text_is_told_in_words(name: str, value: str, said: str) -> None:
    table, setting = name.split(".")
    own = {setting: value}
    tables = {"recipe": {"a": own}, "folder": [FOLDER | own], "bucket": [BUCKET | own]}
    (text,) = problems(
        {table: tables.get(table, own)} | ({"source": {"kind": "jetstream"}} if table == "bucket" else {})
    )
    assert said in text
    assert f"{value}'" in text
    assert not re.search(r"[\^$\\]|\[[0-9]|pattern", text)


@pytest.mark.parametrize(("name", "field"), SETTINGS)
def test_no_setting_would_print_a_regular_expression(name: str, field: FieldInfo) -> None:
    """Every text is free, a path, one of some words, or one of those above."""
    assert not any(getattr(each, "pattern", None) for each in field.metadata)
    checked = any(isinstance(each, AfterValidator) for each in field.metadata)
    assert (name in SHAPED) == (checked and field.annotation is str)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": {"kind": "folders"}}, 'bucket.0.input: is only for [source] kind = "jetstream"'),
        (
            {"folder": [KEPT | {"name": "cloud"}]},
            "bucket.0.name: 'cloud' is the name of another",
        ),
        ({"bucket": [BUCKET | {"output": "s3://shop/in/out"}]}, "bucket.0.output: s3://shop/in/out/ and input,"),
        ({"bucket": [BUCKET | {"recipe": "wbe"}]}, "bucket.0.recipe: no recipe 'wbe'"),
        ({"recipe": {"default": {"review_below": 0.5}}}, "bucket.0.review: is missing"),
        ({"bucket": BUCKET}, "bucket: write [[bucket]] with two brackets"),
        ({"bucket": [BUCKET, BUCKET | {"name": "more"}]}, "bucket.1.failed: s3://shop/failed is another root's, too"),
        ({"folder": [KEPT, KEPT | {"name": "web"}]}, "folder.1.failed: /a/failed is another root's, too"),
    ],
)
def test_buckets_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    (text,) = problems({"source": {"kind": "jetstream"}, "bucket": [BUCKET]} | settings)
    assert text.startswith(said) or said in text


def test_only_the_records_of_folders_are_files_of_their_own() -> None:
    config = parse({"source": {"kind": "jetstream"}, "folder": [KEPT], "bucket": [BUCKET]})
    assert config.recipe_of(config.folder[0]).sidecar == "always"
    assert config.recipe_of(config.bucket[0]).sidecar == Recipe().sidecar
    assert [folder.name for folder in config.with_spools().folder] == ["shop", "cloud"]


@pytest.mark.parametrize("kind", ["images", "frames", "films"])
def test_a_root_of_a_fleet_may_have_any_kind_and_keeps_its_originals(kind: str) -> None:
    source = {"source": {"kind": "jetstream"}}
    assert parse(source | {"folder": [KEPT | {"kind": kind}]}).folder[0].kind == kind
    (text,) = problems(source | {"folder": [KEPT | {"kind": kind, "originals": "delete"}]})
    assert "a root of a fleet keeps its originals" in text


def test_archive_without_a_place_is_refused() -> None:
    lacking = {key: value for key, value in FOLDER.items() if key != "done"}
    assert "needs a `done` folder" in problems({"folder": [lacking]})[0]
    assert parse({"folder": [lacking | {"originals": "delete"}]}).folder[0].done is None


def test_all_mistakes_are_reported_at_once() -> None:
    assert 3 == len(problems({"intake": {"quiet_close": 1, "attempts": 0}, "limits": {"side": "wide"}}))


def test_settings_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().service.stop_timeout = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "expected"), [(b"\xff", "not UTF-8 at byte 0"), (b"[a", "`rmbgd check --print-default` shows how")]
)
def test_file_that_is_no_toml_is_named(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "rmbgd.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load(path)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    """Some editors write one, where others show nothing."""
    path = tmp_path / "rmbgd.toml"
    path.write_text("[engine]\nthreads = 3\n", encoding="utf-8-sig")
    assert 3 == load(path).engine.threads


def test_recipe_of_a_folder() -> None:
    """The named recipe, or the defaults when `default` is not spelt out."""
    read = parse({"recipe": {"shop": {"format": "webp"}}, "folder": [FOLDER | {"recipe": "shop"}]})
    assert "webp" == read.recipe_of(read.folder[0]).format
    assert Recipe() == parse({"folder": [FOLDER]}).recipe_of(Folder(**FOLDER))


def test_options_go_over_the_tables_of_a_file(tmp_path: Path) -> None:
    """Those that were given; None and other tables change nothing, and tables that are not asked for are left out."""
    path = tmp_path / "rmbgd.toml"
    path.write_text(
        '[engine]\ndevice = "cpu"\nthreads = 3\n[limits]\nside = 9\n[recipe.shop]\nformat = "tiff"\ncrop = true\n'
    )
    options = {"engine": {"device": None, "threads": 2}, "recipe": {"crop": False, "canvas": None}}
    config, recipe = overlay(path, "shop", ["engine"], options)
    assert Recipe(format="tiff", crop=False) == recipe == config.recipe["shop"]
    assert ("cpu", 2, Config().limits) == (config.engine.device, config.engine.threads, config.limits)


def test_options_over_a_recipe_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no recipe 'shop'; there is default"):
        overlay(None, "shop", [], {})


def test_float8_of_an_older_configuration_is_read_as_auto():
    config = parse({"engine": {"precision": "float8"}})
    (adjusted,) = config.adjusted
    assert config.engine.precision_used == "auto"
    assert (adjusted["setting"], adjusted["configured"], adjusted["used"]) == ("engine.precision", "float8", "auto")
    assert parse({"engine": {"precision": "bfloat16"}}).adjusted == []


SHOP = FOLDER | {"recipe": "shop"}


def with_recipe(**recipe: Any) -> dict[str, Any]:
    return {"recipe": {"shop": recipe}, "folder": [SHOP]}


def test_the_suffix_of_a_path_settles_its_format() -> None:
    paths = ["{dir}/{stem}.jpg", "{dir}/{stem}-mask", {"path": "{dir}/{stem}-p", "format": "tiff"}]
    deliver = [each if isinstance(each, dict) else {"path": each} for each in paths]
    assert ["jpeg", "png", "tiff"] == [each.format for each in parse(with_recipe(deliver=deliver)).recipe["shop"].looks]


@pytest.mark.parametrize(
    ("recipe", "place", "told"),
    [
        ({"deliver": [{"path": "../{stem}"}]}, "deliver.0.path", "must stay below the output"),
        ({"deliver": [{"path": "{stem}"}, {"path": "{stem}.png"}]}, "deliver.1.path", "two files need two names"),
        ({"deliver": [{"format": "png"}]}, "deliver.0.path", "is missing"),
        ({"deliver": [{"path": "{stem}", "formt": "png"}]}, "deliver.0.formt", "did you mean 'format'"),
        ({"deliver": [{"path": "{stem}", "jpeg_quality": 0}]}, "deliver.0.jpeg_quality", "at least 1"),
        ({"deliver": [{"path": "{stem}.png", "clipping_path": True}]}, "deliver.0.clipping_path", "no clipping path"),
        ({"deliver": {"path": "{stem}"}}, "deliver", "list"),
        ({"deliver": ["{stem}"]}, "deliver.0", "two brackets"),
        ({"deliver": [{"path": "{stem}"}], "crop": True}, "crop", "no effect beside"),
        ({"deliver": [{"path": "{stem}~{subject}"}]}, "deliver.0.path", "{subject}"),
        ({"deliver": [{"path": "{stem}", "canvas": "60000x60000"}]}, "deliver.0.canvas", "beyond limits.pixels"),
        ({"fill": 0.85}, "fill", "needs a frame"),
        ({"fill": 0.85, "canvas": "9x9", "margins": [0.1, 0.1, 0.1, 0.1]}, "margins", "drop one"),
        ({"canvas": "9x9", "margins": [0.5, 0.1, 0.5, 0.1]}, "margins", "leave room"),
        ({"canvas": "9x9", "margins": [0.5]}, "margins", "four shares"),
        ({"canvas": "9x9", "fill": 0.5, "crop": True}, "crop", "drop crop"),
        ({"canvas": "9x9", "longest_side": 9}, "longest_side", "drop one"),
        ({"deliver": [{"path": "{stem}.png", "format": "jpeg"}]}, "deliver.0.format", "the suffix"),
        ({"preset": "amazon-mane"}, "preset", "did you mean 'amazon-main'"),
        ({"preset": "amazon-main", "crop": True}, "preset", "drop crop"),
        ({"bytes_maximum": 9, "format": "png"}, "bytes_maximum", "no quality"),
        ({"shadow": "cast", "content": "mask"}, "shadow", "no room"),
        ({"coco": True}, "coco", "split"),
        ({"review_below": 0.5}, None, "review"),
        ({"preset": "amazon-main"}, None, "review"),
    ],
)
def test_recipes_that_cannot_be(recipe: dict[str, Any], place: str | None, told: str) -> None:
    review = {} if place is None else {"review": "/a/review"}
    (problem,) = problems({"recipe": {"shop": recipe}, "folder": [SHOP | review]})
    assert told in problem
    assert (f"recipe.shop.{place}:" if place else "folder.0.review:") in problem


def test_two_files_of_an_image_are_no_contradiction() -> None:
    deliver = [{"path": "{stem}"}, {"path": "{stem}.jpg"}, {"path": "m/{stem}", "content": "mask"}]
    assert 3 == len(parse(with_recipe(deliver=deliver)).recipe["shop"].looks)


@pytest.mark.parametrize(
    ("folder", "recipe", "said"),
    [
        ({"kind": "films", "latency": "realtime"}, {}, "a film is not realtime"),
        ({"kind": "films", "frame_wait": 1.0}, {}, "is for frames of films"),
        ({"kind": "frames", "look_ahead": 3}, {}, "is for films, which are there whole"),
        ({"kind": "images", "temporal": "steady"}, {}, 'set kind = "frames" or "films"'),
        ({"kind": "films"}, {"crop": True}, "sets crop, which films cannot have"),
        ({"kind": "films"}, {"shadow": "contact"}, "sets shadow, which films cannot have"),
    ],
)
def test_what_films_cannot_have_is_said(folder: dict[str, object], recipe: dict[str, object], said: str) -> None:
    places = {"input": "/in", "output": "/out", "failed": "/failed", "originals": "keep"}
    with pytest.raises(ConfigError, match=said):
        parse({"recipe": {"default": recipe}, "folder": [{"name": "films", **places, **folder}]})


def test_a_films_folder_has_the_extension_of_its_format() -> None:
    places = {"input": "/in", "output": "/out", "failed": "/failed", "originals": "keep"}
    config = parse({"recipe": {"default": {"film": "vp9"}}, "folder": [{"name": "f", "kind": "films", **places}]})
    assert config.extension_of(config.folder[0]) == ".webm"
