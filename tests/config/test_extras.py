"""Without the optional libraries everything else works, and what needs one says in a line how to get it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rmbgd.config import extras
from rmbgd.config.load import Config
from rmbgd.errors import Exit
from tests.support.images import sample_image

REPOSITORY = Path(__file__).parents[2]
# One process for all, since loading torch takes most of the time.
PROGRAM = """
import contextlib, io, json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None  # imports of it raise ImportError
from rmbgd.cli.main import main
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(words)
        except SystemExit as leaving:
            status = leaving.code
    print(json.dumps([int(status), out.getvalue(), err.getvalue()]))
try:
    import rmbgd.models.hf
except Exception as error:
    print(json.dumps([0, "", f"{type(error).__name__}: {error}"]))
"""
METRICS = "health.metrics_file needs prometheus_client: pip install 'rmbgd[metrics]'"


@pytest.mark.integration
def test_base_installation_works_and_names_the_extra_that_a_command_needs(tmp_path: Path) -> None:
    folder = {role: tmp_path / role for role in ("input", "output", "failed")}
    for path in folder.values():
        path.mkdir()
    settings = f'[service]\nstate_directory = "{tmp_path}"\nruntime_directory = "{tmp_path}"\n'
    settings += '[engine]\ndevice = "cpu"\n[[folder]]\nname = "shop"\noriginals = "keep"\n'
    settings += "".join(f'{role} = "{path}"\n' for role, path in folder.items())
    plain, counted = tmp_path / "plain.toml", tmp_path / "counted.toml"
    plain.write_text(settings)
    counted.write_text(f'{settings}[health]\nmetrics_file = "{tmp_path}/rmbgd.prom"\n')
    (tmp_path / "shoe.jpg").write_bytes(sample_image(1))
    (tmp_path / "events.jsonl").touch()
    expected = {
        f"check --config {plain}": (Exit.OK, ""),
        f"once {tmp_path}/shoe.jpg {tmp_path}/cutout --device cpu": (Exit.OK, ""),
        "models list": (Exit.OK, ""),
        "bench --help": (Exit.OK, ""),
        f"doctor --json --config {plain}": (Exit.OK, ""),
        f"doctor --json --config {counted}": (Exit.FAILED, ""),
        f"check --config {counted}": (Exit.CONFIGURATION, METRICS),
        f"run --config {counted}": (Exit.CONFIGURATION, METRICS),
        f"models fetch birefnet-lite --models-dir {tmp_path}/models": (
            Exit.CONFIGURATION,
            "models fetch needs huggingface_hub: pip install 'rmbgd[fetch]'",
        ),
        f"mtbf {tmp_path}/events.jsonl --html {tmp_path}/report.html": (
            Exit.CONFIGURATION,
            "--html needs jinja2: pip install 'rmbgd[report]'",
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([module for module, _ in extras.EXTRAS.values()])],
        input=json.dumps([words.split() for words in expected]),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    *answers, imported = [json.loads(line) for line in done.stdout.splitlines()]
    for (words, (status, said)), (got, out, err) in zip(expected.items(), answers, strict=True):
        assert (status, True) == (got, said in err), (words, out, err)
        assert sum(line[0] != " " for line in err.splitlines()) <= 1, (words, err)  # the excerpt is indented
    assert "ConfigError: rmbgd.models.hf needs transformers: pip install 'rmbgd[transformers]'" == imported[2]
    assert (tmp_path / "cutout" / "shoe.png").exists()
    found = [json.loads(answers[index][1])["findings"] for index in (4, 5)]
    of_extras = [next(each for each in findings if each["need"] == "extras") for findings in found]
    assert ["ok", "fail"] == [each["state"] for each in of_extras]
    assert "installed: none; not installed: completion (completion in the shell), cuda" in of_extras[0]["text"]
    assert METRICS == of_extras[1]["hint"]


def test_every_extra_is_one_that_the_package_declares() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(extras.EXTRAS) == set(declared["optional-dependencies"]) - {"test", "demo", "capacity"}  # of tools
    names = [re.split(r"[^\w-]", each)[0].replace("-", "_") for each in declared["dependencies"]]
    assert set() == {module for module, _ in extras.EXTRAS.values()} & set(names)


def test_no_library_is_missing_that_no_setting_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda _: False)
    assert [] == extras.missing_extras(Config())


def test_library_without_its_package_is_not_installed() -> None:
    """Python raises, instead of answering, when even the parent package is missing."""
    assert not extras.is_installed("no_such_package.module")
    assert extras.is_installed("json.decoder")
