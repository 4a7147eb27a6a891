"""Where a key or value stands in TOML text, compared with what tomllib reads from just that piece of it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.config.toml_places import Location, Places, locate
from tools.gen_reference import default_toml

HARD = '''# [not.a.table]
top = 1 # "not = this"
"quoted.key" = 'C:\\no'
a.b . "c d" = "x # y" # z
[ table ]
multi = """
[no.heading]
key = "no" \\""" ""quotes"""""
raw = \'\'\'
[[folder]]
it''s = 1\'\'\'
list = [ 1, # one, [two
  "a]", [2.5e3, 1979-05-27 07:32:00],
  { x = "}", y.z = [true] },
]
inline = { "" = "", 'k' = {}, }
[[folder]]
name = "a"
[folder.sub]
deep = "1"
[[folder.more]]
n = 1
[[folder.more]]
n = 2
[[folder]]
name = "b"\t
[folder.more]
n = inf
'''.replace("{}, }", "{} }")


def leaves(content: Any, location: Location = ()) -> list[Location]:
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    inner = [leaf for key, value in pairs for leaf in leaves(value, (*location, key))]
    return inner if isinstance(content, (dict, list)) else [location]


def at(content: Any, location: Location) -> Any:
    for part in location:
        content = content[part]
    return content


def check_every_place(text: str) -> None:
    tables = tomllib.loads(text)
    places = locate(text, tables)
    assert places.values.keys() >= set(leaves(tables))
    for location, (start, end) in places.values.items():
        assert tomllib.loads(f"key = {text[start:end]}")["key"] == at(tables, location)
    for location, (start, end) in places.keys.items():
        read = tomllib.loads(f"{text[start:end]} = 0")
        for part in location[-len(leaves(read)[0]) :]:
            read = read[str(part)]
        assert read == 0, "a key, or the first parts of a dotted one"


@pytest.mark.parametrize("text", [HARD, HARD.replace("\n", "\r\n"), default_toml(), "", "a=1"])
def test_every_value_stands_where_it_is_said_to_stand(text: str) -> None:
    check_every_place(text)


texts = st.text(st.sampled_from("a\"'\\#[]{}=,.\n\té界"), max_size=12)
scalars = st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False), texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)} = {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[ # ]\n" + ",\n".join(map(written, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if "'" not in value and value.isprintable():
            return f"'{value}'"
        return '"' + "".join(f"\\u{ord(c):04x}" if c in '"\\\n\t' else c for c in value) + '"'
    return repr(value)


@given(st.lists(st.dictionaries(texts, values, max_size=4), max_size=4))
def test_any_table_is_found(tables: list[dict[str, Any]]) -> None:
    lines = (["[[t]] # x", *(f"{written(k)} = {written(v)} # =" for k, v in table.items())] for table in tables)
    check_every_place("\n".join(line for table in lines for line in table))


@pytest.mark.parametrize(
    ("location", "key", "line"),
    [
        (("folder", 0, "name"), False, "name = "),
        (("folder", 1, "input"), False, "[[folder]]"),
        (("folder", 0, "sub", "deep"), True, "deep = "),
        (("folder", 0, "more", 1, "x"), False, "[[folder.more]]"),
        (("table", "list", 3, "z"), False, "  { x = "),
        (("table", "list", 9), False, "list = "),
        (("a", "b", "c d"), False, "a.b . "),
        (("a", "z"), False, "a.b . "),
        (("nothing", "here"), False, None),
    ],
)
def test_what_is_missing_has_the_place_of_its_table(location: Location, key: bool, line: str | None) -> None:
    places = locate(HARD, tomllib.loads(HARD))
    span = places.find(location, key=key)
    assert (span is None) == (line is None)
    if span is not None:
        assert HARD.splitlines()[places.position(span[0])[0] - 1].startswith(str(line))


def test_a_text_that_it_does_not_understand_gives_no_place_rather_than_a_wrong_one() -> None:
    text = "a = 1\nb ?? 2\nc = 3\n"
    assert locate(text, {"a": 1, "b": 2, "c": 3}).values.keys() == {("a",)}
    assert locate("[x]\na = 1\n", {"y": {"a": 1}}).values == {}


@pytest.mark.parametrize(
    ("text", "mark", "shown"),
    [
        ('\tkey = "a"', '"a"', ('key = "a"', "      ^^^")),
        ('界 = "界"', '"界"', ('界 = "界"', "     ^^^^")),
        ('k = "\x1b[2J\u202e"', '"', ('k = "\ufffd[2J\ufffd"', "    ^")),
        ('a = {k = "e\u0301", b = 1}', "1", ('a = {k = "e\u0301", b = 1}', " " * 18 + "^")),
        ("k = [\n1]", "[\n1]", ("k = [", "    ^")),
    ],
)
def test_carets_stand_below_what_is_meant(text: str, mark: str, shown: tuple[str, str]) -> None:
    start = text.index(mark)
    assert shown == Places(text).excerpt((start, start + len(mark)))


def test_a_long_line_is_cut_around_what_is_meant() -> None:
    text = f"key = [{'1, ' * 500}'here']"
    line, carets = Places(text).excerpt((text.index("'here'"), text.index("'here'") + 6))
    assert len(line) <= 100
    assert "'here'" == line[carets.index("^") : carets.rindex("^") + 1]
