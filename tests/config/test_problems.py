"""Problems in a configuration file: all in one round, in our words, with the line and what stands there."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.config.load import Config, examine, load, parse
from rmbgd.errors import ConfigError, ConfigProblem
from tools import gen_reference

FOLDER = {"name": "shop", "input": "/a/in", "output": "/a/out", "failed": "/a/failed", "done": "/a/done"}
BUCKET = {"name": "cloud", "input": "s3://shop/in", "output": "s3://shop/out", "failed": "s3://shop/failed"}
ARRAYS = {"folder": FOLDER, "bucket": BUCKET}
SETTINGS = [(name, setting) for name, _, model in gen_reference.sections() for setting in model.model_fields]
OF_PYDANTIC = re.compile(
    r"[Ii]nput should|[Ff]ield required|String should|Extra inputs|Value error|valid |type=|pattern"
)
WRONG: list[Any] = [
    *("", "\0", "x" * 99, "10", "-1e3", "10%", "10.5 %", "nan", "~nobody-here/x", "relative/path", "auto", "ÿ\u202e"),
    *(-1, 0, 10**30, -1.5, float("inf"), float("nan"), True, False),
    *([], {}, [[]], [1], ["a"], [None], {"a": 1}, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    *(dt.date(2026, 1, 1), dt.time(1)),
]


def tables_with(table: str, setting: str, value: Any) -> dict[str, Any]:
    if table in ARRAYS:
        return {table: [ARRAYS[table] | {setting: value}]}
    return {table: {"a": {setting: value}} if table == "recipe" else {setting: value}}


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_no_sentence_is_pydantics(value: Any) -> None:
    """For every setting, and a battery of wrong values."""
    wrong: dict[str, Any] = {}
    for table, setting in SETTINGS:
        wrong.setdefault(table, {})[setting] = value
    _, mistakes = examine(wrong | {"recipe": {"a": wrong["recipe"]}} | {name: [wrong[name]] for name in ARRAYS})
    assert len(mistakes) > len(SETTINGS) / 4
    for mistake in mistakes:
        assert not OF_PYDANTIC.search(mistake.text), mistake
        assert "cannot be used" not in mistake.text, "a kind of problem that has no words yet"
        assert any((part, name) in SETTINGS for part in mistake.location for name in mistake.location), mistake


leaf = st.sampled_from([*WRONG, "shop", "/a/in", "/a/b.prom", 1, 2, 8, 16, 50, "archive", "mask", "webp", "100x100"])
names = st.sampled_from([*{setting for _, setting in SETTINGS}, "unknown"])
table = st.dictionaries(names, leaf, max_size=6) | leaf


@given(
    st.dictionaries(st.sampled_from([*Config.model_fields, "tabel"]), table, max_size=4),
    st.dictionaries(st.sampled_from(["a", "b c"]), table, max_size=2) | leaf,
    st.lists(table.map(lambda each: FOLDER | each if isinstance(each, dict) else each), max_size=3) | leaf,
)
def test_any_tables_are_a_configuration_or_have_problems(tables: dict[str, Any], recipe: Any, folder: Any) -> None:
    """Nothing is raised but a ConfigError, and what is found no problem is accepted."""
    config, mistakes = examine(tables | {"recipe": recipe, "folder": folder})
    assert not any(OF_PYDANTIC.search(mistake.text) for mistake in mistakes)
    assert config.recipe_of is not None
    if not mistakes:
        assert config == Config.model_validate(tables | {"recipe": recipe, "folder": folder})


@pytest.mark.parametrize(
    ("table", "setting", "value", "said"),
    [
        ("intake", "attempts", 11, "must be at most 10 (is 11)"),
        ("intake", "attempts", 0, "must be at least 1 (is 0)"),
        ("limits", "file_bytes", 10**12, "must be at most 8_589_934_592 bytes (is 1000000000000)"),
        ("health", "probe_slowness", 1.0, "must be more than 1 (is 1.0)"),
        ("health", "memory_error_rate", 1.0, "must be less than 1 (is 1.0)"),
        ("recipe", "format", "jpg", "must be one of png, webp, tiff, jpeg (is 'jpg'); did you mean 'jpeg'?"),
        ("recipe", "format", "PNG", "must be one of png, webp, tiff, jpeg (is 'PNG'); did you mean 'png'?"),
        ("recipe", "mask_bits", 9, "must be one of 8, 16 (is 9)"),
        ("recipe", "metadata", ["gps"], "must be one of copyright, artist, description, software, datetime (is 'gps')"),
        ("recipe", "metadata", "artist", "must be a list in brackets (is 'artist'); write it like metadata = "),
        ("recipe", "crop_margin", "ten", "must be a number, like 0.1 or \"10%\" (is 'ten')"),
        ("recipe", "crop_margin", "80%", "must be at most 0.5 (is 0.8)"),
        ("engine", "threads", "2", "must be a whole number, without quotes (is '2'); write threads = 2"),
        ("folder", "input", None, "must be a path, in quotes (is None)"),
        ("folder", "input", "~nobody-here/x", "'~nobody-here/x': no such user has a home directory here"),
        ("folder", "name", dt.date(2026, 1, 2), "must be a text, in quotes (is 2026-01-02)"),
        ("recipe", "model", "x" * 99, None),
        ("recipe", "format", "x" * 99, f"(is '{'x' * 59}...)"),
    ],
)
def test_a_wrong_value_is_told_in_words(table: str, setting: str, value: Any, said: str | None) -> None:
    texts = [mistake.text for mistake in examine(tables_with(table, setting, value))[1]]
    assert len(texts) == (said is not None)
    assert said is None or said in texts[0]


@pytest.mark.parametrize("name", ["empty_below", "crop_margin"])
def test_a_share_may_be_written_in_percent(name: str) -> None:
    for written in ("10%", "10.0 %", 0.1):
        assert 0.1 == getattr(parse(tables_with("recipe", name, written)).recipe["a"], name)


@pytest.mark.parametrize("setting", ["state_directory", "runtime_directory", "models_directory", "log_file"])
def test_a_path_may_begin_with_the_home_directory(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    read = parse({"service": {setting: "~/shop"}, "folder": [FOLDER | {"input": "~root/in"}]})
    assert Path("/home/me/shop") == getattr(read.service, setting)
    assert read.folder[0].input == Path("~root/in").expanduser()


def test_models_lie_in_the_state_directory_unless_it_is_said_where() -> None:
    def models(**service: str) -> Path:
        return parse({"service": service}).service.models_directory

    assert Path("/var/lib/rmbgd/models") == models()
    assert Path("/s/models") == models(state_directory="/s")
    assert Path("/m") == models(state_directory="/s", models_directory="/m")


TEXT = """[recipe.white]
canvas = "2000"

[engine]
device = "cpu"
devise = "cpu"
[health]
require_gpu = true
cool = 99
hot = "90"
sensor_timeout = 30
[[folder]]
name = "shop"
input = "shop/in"
output = "/a/out"
recipe = "whiet"

[[folder]]
name = "shop"
input = "/b/in"
output = "/b/out"
failed = "/b/failed"
# done is missing
priority = [
    1,
]
"""


def problems_of(text: str, path: Path) -> list[str]:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    """A missing setting hides no unknown recipe, and a wrong one no contradiction of others."""
    path = tmp_path / "rmbgd.toml"
    found = [text.removeprefix(f"{path}:") for text in problems_of(TEXT, path)]
    beginnings = [
        "2: [recipe.white]: canvas: '2000' is no size; write",
        '5: [engine]: device: "cpu" contradicts health.require_gpu = true',
        "6: [engine]: devise: unknown setting; did you mean 'device'?",
        "10: [health]: hot: must be a number, without quotes (is '90'); write hot = 90",
        "11: [health]: sensor_timeout: 30.0 must not exceed interval = 5.0",
        '12: [[folder]] "shop": failed: is missing; write failed = "..."',
        '12: [[folder]] "shop": done: is missing: originals = "archive" needs a `done` folder',
        "14: [[folder]] \"shop\": input: 'shop/in' is relative",
        "16: [[folder]] \"shop\": recipe: no recipe 'whiet'; did you mean 'white'?",
        '18: [[folder]] "shop": done: is missing',
        "19: [[folder]] \"shop\": name: 'shop' is the name of another folder, too",
        '24: [[folder]] "shop": priority: must be a whole number',
    ]
    assert len(beginnings) == len(found), found
    for beginning, text in zip(beginnings, found, strict=True):
        assert text.startswith(beginning), (beginning, text)


def test_the_line_is_shown_with_carets_below_the_value(tmp_path: Path) -> None:
    (problem,) = problems_of('[engine]\n  threads = "2" # two\n', tmp_path / "rmbgd.toml")
    assert isinstance(problem, ConfigProblem)
    assert ('threads = "2" # two', "          ^^^") == problem.excerpt
    assert [2, 13, "[engine]", "threads"] == [problem.parts[key] for key in ("line", "column", "table", "setting")]


@pytest.mark.parametrize(
    ("text", "said", "excerpt"),
    [
        (
            "[[folder]]\ninput = /srv/in\n",
            "2: not TOML: this is no value; write texts",
            ("input = /srv/in", "        ^"),
        ),
        ("[engine]\n[engine]\n", "2: not TOML: cannot declare [engine] twice", ("[engine]", "       ^")),
        ("[a.b]\n[a.b]\n", "2: not TOML: cannot declare [a.b] twice", ("[a.b]", "    ^")),
        ("a = 1 b = 2\n", "1: not TOML: this does not belong here", ("a = 1 b = 2", "      ^")),
        ("a = 1\na = 2\n", "2: not TOML: this is set twice", ("a = 2", "     ^")),
        ('a = "\n', "1: not TOML: illegal character", ('a = "', "     ^")),
        ("a = [1,\n", "1: not TOML: ", ("a = [1,", "      ^")),
        ("", None, None),
    ],
)
def test_what_is_no_toml_is_shown(text: str, said: str | None, excerpt: object, tmp_path: Path) -> None:
    path = tmp_path / "rmbgd.toml"
    if said is None:
        path.write_text(text)
        assert load(path) == Config()
        return
    (problem,) = problems_of(text, path)
    assert problem.startswith(f"{path}:{said}")
    assert problem.endswith("`rmbgd check --print-default` shows how to write it")
    assert isinstance(problem, ConfigProblem)
    assert excerpt == problem.excerpt
