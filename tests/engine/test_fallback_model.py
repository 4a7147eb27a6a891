"""Which models stand in on the CPU, and whether they stay loaded."""

from __future__ import annotations

import re

import pytest

from rmbgd.config.load import Config, parse
from rmbgd.engine.fallback_model import choose_fallback_models, warmth
from rmbgd.errors import ConfigError


@pytest.mark.parametrize(
    ("wanted", "available", "warm"),
    [("auto", 2000, True), ("auto", 1999, False), ("warm", 0, True), ("on_demand", 1 << 40, False)],
)
def test_memory_decides_unless_the_operator_does(wanted, available, warm):
    """Twice the need must be available; the reason is told."""
    found, why = warmth(wanted, 1000, available)
    assert (found, bool(why)) == (warm, True)


def config_of(tmp_path, model: str, **health: object) -> Config:
    folder = {"name": "a", "input": "/a", "output": "/b", "failed": "/c", "done": "/d"}
    tables = {"health": health, "folder": [folder], "service": {"models_directory": str(tmp_path)}}
    return parse(tables | {"recipe": {"default": {"model": model}}}, origin="test")


@pytest.mark.parametrize(
    ("installed", "fallback", "expected"),
    [
        (["birefnet"], "auto", {"birefnet": "u2netp"}),
        (["birefnet", "birefnet-lite"], "auto", {"birefnet": "birefnet-lite"}),
        (["birefnet-lite"], "auto", {"birefnet-lite": "birefnet-lite"}),
        (["birefnet", "birefnet-lite"], "u2netp", {"birefnet-lite": "u2netp"}),
        (["birefnet-lite"], "birefnet-lite", {"u2netp": "u2netp"}),
    ],
)
def test_nobody_is_given_a_larger_model_than_he_asked_for(tmp_path, installed, fallback, expected):
    """auto prefers birefnet-lite where it is installed; what is no larger than the fallback stands in for itself."""
    for name in installed:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes({"birefnet": 7_000_000}.get(name, 6_000_000)))
    config = config_of(tmp_path, *expected, fallback_model=fallback)
    assert choose_fallback_models(config).models == expected


def test_a_fallback_model_that_is_not_there_is_said_and_tried(tmp_path):
    """The GPU may serve without it; the reason names the model and how to get it."""
    found = choose_fallback_models(config_of(tmp_path, "u2netp", fallback_model="birefnet-lite"))
    assert (found.models, found.warm) == ({"u2netp": "birefnet-lite"}, True)
    assert re.search(r"birefnet-lite.*rmbgd models fetch", found.why)


def test_a_recipe_s_model_that_is_not_there_is_the_operator_s(tmp_path):
    with pytest.raises(ConfigError, match=r"birefnet-lite.*rmbgd models fetch"):
        choose_fallback_models(config_of(tmp_path, "birefnet-lite"))
