from __future__ import annotations

import pytest

from rmbgd.errors import ModelError
from rmbgd.models.checkpoint import choose, read_author_code
from rmbgd.models.registry import PatchOrder
from tests.models.checkpoints import NEW_CODE, OLD_CODE

OLD, NEW = PatchOrder.TILE_FIRST, PatchOrder.CHANNEL_FIRST


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        (OLD, OLD_CODE),
        (NEW, NEW_CODE),
        (NEW, NEW_CODE.replace("'b c (hg h) (wg w) -> b (c hg wg) h w'", "('b c (hg h) (wg w)->b (c  hg wg) h w')")),
        (NEW, OLD_CODE.replace("self.get_patches_batch(x, x4) if self.split else x", "x") + NEW_CODE),
        (None, "class Decoder: pass"),
        (None, OLD_CODE + NEW_CODE),
        (None, "# self.get_patches_batch(x, x4)\n# 'b c (hg h) (wg w) -> b (c hg wg) h w'"),
        (None, "text = 'b c (hg h) (wg w) -> b (c hg wg) h w'"),
        (None, "rearrange(x, 'b c (hg h) (wg w) -> b (wg hg c) h w')"),
        (None, "this is not python ("),
        (None, "(" * 5000),
        (None, "\0"),
        (None, ""),
    ],
    ids=[
        "old",
        "new",
        "spacing",
        "defined-not-called",
        "neither",
        "both",
        "comments",
        "unused",
        "other",
        "syntax",
        "deep",
        "null",
        "empty",
    ],
)
def test_the_authors_code_is_read_by_its_calls(expected, code):
    """What the code calls decides; definitions, comments and texts that nobody uses do not, and nothing raises."""
    assert read_author_code(code) == expected


def test_reading_never_runs(tmp_path):
    """Code that would make a file when it ran is only read."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\n{NEW_CODE}"

    assert read_author_code(code) is NEW
    assert not mark.exists()


@pytest.mark.parametrize(
    ("expected", "reason", "known"),
    [
        (OLD, "the registry", {"registry": OLD}),
        (NEW, "the author's birefnet.py", {"author_code": NEW_CODE}),
        (OLD, "config.json", {"saved": OLD}),
        (NEW, "the setting", {"setting": NEW}),
        (OLD, "the registry", {"registry": OLD, "author_code": OLD_CODE, "saved": OLD, "setting": OLD}),
        (NEW, "the setting", {"author_code": "class Decoder: pass", "setting": NEW}),
    ],
)
def test_the_strongest_source_decides_and_is_named(expected, reason, known):
    """Registry, then the author's code, then what was saved, then the setting; the reason says which."""
    choice = choose(model="m", **known)

    assert choice.order is expected
    assert choice.reason.startswith(reason)


@pytest.mark.parametrize(
    "known",
    [
        {"registry": OLD, "author_code": NEW_CODE},
        {"registry": OLD, "setting": NEW},
        {"author_code": OLD_CODE, "setting": NEW},
        {"author_code": OLD_CODE, "saved": NEW},
    ],
)
def test_contradictions_are_refused(known):
    """Two sources that contradict each other are an error that names both orders: a wrong one would not fail."""
    with pytest.raises(ModelError, match="one of them is wrong") as refusal:
        choose(model="m", **known)

    assert OLD in str(refusal.value)
    assert NEW in str(refusal.value)


@pytest.mark.parametrize("code", [None, "class Decoder: pass", OLD_CODE + NEW_CODE])
def test_nothing_is_guessed(code):
    """When nothing tells, the refusal names the file and the setting that would."""
    with pytest.raises(ModelError, match=r"birefnet\.py.*patch_order"):
        choose(model="m", author_code=code)
