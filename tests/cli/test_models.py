from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from rmbgd.cli import main as cli
from rmbgd.cli import models as commands
from rmbgd.models import licences as consent
from rmbgd.models.registry import REGISTRY
from rmbgd.models.store import EMBEDDED, WEIGHTS
from tests.models.checkpoints import NEW_CODE, OLD_CODE, hollow


@pytest.fixture
def run(tmp_path, capsys):
    """`rmbgd models ...` on a models directory of its own -> (exit status, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser("rmbgd models")
        commands.add_arguments(parser, models=tmp_path / "models")
        status = commands.run(parser.parse_args([str(w) for w in words]))
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def usb(tmp_path):
    """A folder with Swin-T weights of zeros and the author's newer code, as somebody carries it to this machine."""
    hollow(tmp_path / "usb" / WEIGHTS)
    (tmp_path / "usb" / "birefnet.py").write_text(NEW_CODE)
    return tmp_path / "usb"


def test_list_shows_every_model_and_its_licence(run):
    status, out, _ = run("list")
    assert status == 0
    assert all(name in out for name in REGISTRY)
    assert "CC-BY-NC-4.0" in out
    assert "not accepted" in out


def test_list_fits_a_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = run("list")
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_list_for_scripts_says_what_is_here(run, usb):
    run("fetch", "birefnet-lite", "--from", usb)
    rows = {row["name"]: row for row in json.loads(run("list", "--json")[1])}
    states = {name: rows[name]["state"] for name in ("u2netp", "birefnet-lite", "birefnet")}
    assert states == {"u2netp": "embedded", "birefnet-lite": "here", "birefnet": "absent"}
    assert (rows["birefnet-lite-2k"]["input_height"], rows["birefnet-lite-2k"]["input_width"]) == (1440, 2560)


def test_weights_without_a_known_digest_are_unverified_wherever_they_are_named(run, usb):
    assert "unverified" not in run("list")[1]
    _, fetched, _ = run("fetch", "birefnet-lite", "--from", usb)
    assert "  unverified: rmbgd knows no digest of it" in fetched
    assert "unverified" in run("list")[1]
    shown = dict(line.split(": ", 1) for line in run("show", "birefnet-lite")[1].splitlines())
    assert shown["verified"].startswith("no: ")
    assert shown["recorded sha256"] in fetched
    assert run("verify", "birefnet-lite", "--json")[0] == 0
    facts = {r["name"]: r["facts"] for r in json.loads(run("verify", "--json")[1])}
    assert facts["u2netp"]["verified"] == "yes"
    assert facts["birefnet-lite"]["verified"].startswith("no: ")
    digest = shown["recorded sha256"]
    (told,) = json.loads(run("verify", "birefnet-lite", "--sha256", digest, "--json")[1])
    assert told["facts"]["verified"] == "yes"  # the operator knows it


def test_show_names_the_data_that_a_model_was_trained_on(run):
    assert "trained on: DUTS-TR\n" in run("show", "u2netp")[1]
    assert "trained on: not published\n" in run("show", "birefnet-512")[1]
    status, _, err = run("show", "birefnett")
    assert (status, "did you mean birefnet" in err) == (1, True)


def test_fetch_says_size_and_licence_first(run, usb, tmp_path):
    status, out, _ = run("fetch", "birefnet-lite", "--from", usb)
    first, *rest = out.splitlines()
    assert status == 0
    assert first == f"birefnet-lite: 178 MB from {usb}, licence MIT"
    assert str(tmp_path / "models" / "birefnet-lite" / WEIGHTS) in rest[0]
    assert "image patches channel_first: the author's birefnet.py beside the weights says so" in out


def test_fetch_goes_on_after_a_failure(run, usb):
    status, out, err = run("fetch", "birefnet", "birefnet-lite", "--from", usb)
    assert status == 1
    assert "Swin-T" in err
    assert "placed and verified" in out


def test_fetch_of_the_embedded_model_is_no_error(run):
    assert run("fetch", "u2netp") == (0, "u2netp: ships inside the package, nothing to fetch\n", "")


def test_fetch_without_patch_order_says_what_is_needed(run, usb):
    (usb / "birefnet.py").unlink()
    status, out, _ = run("fetch", "birefnet-lite", "--from", usb)
    assert status == 0
    assert "before it can be used" in out
    assert "patch_order" in out


def test_accept_records_and_says_how_to_withdraw(run, tmp_path):
    status, out, _ = run("accept", "rmbg-2.0", "--yes", "--by", "Legal")
    record = consent.accepted(REGISTRY["rmbg-2.0"], tmp_path / "models")
    assert status == 0
    assert record.accepted_by.startswith("Legal, entered by ")
    assert str(tmp_path / "models" / "accepted" / "rmbg-2.0.json") in out


def test_accept_needs_somebody_to_ask(run, tmp_path, monkeypatch):
    with open("/dev/null") as null:
        monkeypatch.setattr(sys, "stdin", null)
        status, _, err = run("accept", "rmbg-2.0")
    assert status == 1
    assert "--yes" in err
    assert not (tmp_path / "models").exists()


def test_accept_of_a_free_model_needs_nothing(run, tmp_path):
    status, out, _ = run("accept", "birefnet")
    assert (status, "nothing to accept" in out, (tmp_path / "models").exists()) == (0, True, False)


def test_path_prints_the_path_alone_or_the_command_that_brings_it(run):
    assert run("path", "u2netp") == (0, f"{EMBEDDED}\n", "")
    status, out, err = run("path", "birefnet")
    assert (status, out) == (1, "")
    assert "rmbgd models fetch birefnet" in err


def test_verify_finds_a_flipped_byte(run, usb, tmp_path):
    run("fetch", "birefnet-lite", "--from", usb)
    assert run("verify", "birefnet-lite")[0] == 0
    with (tmp_path / "models" / "birefnet-lite" / WEIGHTS).open("r+b") as file:
        file.seek(100_000_000)
        file.write(b"\x01")
    status, out, _ = run("verify", "birefnet-lite")
    assert status == 1
    assert "origin.json states" in out


def test_verify_without_names_takes_all_that_is_here(run, usb):
    run("fetch", "birefnet-lite", "--from", usb)
    found = {r["name"]: r for r in json.loads(run("verify", "--json")[1])}
    assert set(found) == {"birefnet-lite", "u2netp"}
    assert found["u2netp"]["facts"]["sha256_agrees_with"] == ["the registry"]
    assert found["birefnet-lite"]["facts"]["backbone"] == "swin_v1_t"


def test_verify_tells_contradicting_patch_orders(run, usb):
    (usb / "birefnet.py").write_text(OLD_CODE)
    (usb / "config.json").write_text('{"patch_order": "channel_first"}')
    _, out, _ = run("verify", usb)
    assert "one of them is wrong" in out


def test_verify_against_a_digest_of_ones_own(run):
    good = REGISTRY["u2netp"].sha256
    assert run("verify", "u2netp", "--sha256", good)[0] == 0
    assert run("verify", "u2netp", "--sha256", "0" * 64)[0] == 1


@pytest.mark.integration
def test_nothing_but_loading_needs_torch(tmp_path):
    code = (
        "import argparse, sys\nfrom rmbgd.cli import models as commands\n"
        "for words in (['list'], ['accept', 'rmbg-2.0', '--yes'], ['path', 'u2netp'], ['verify']):\n"
        "    parser = argparse.ArgumentParser()\n    commands.add_arguments(parser)\n"
        f"    commands.run(parser.parse_args([*words, '--models-dir', {str(tmp_path)!r}]))\n"
        "print('loaded:', [m for m in ('torch', 'huggingface_hub', 'transformers') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[service]\nstate_directory = "@"\n', "@/models"),
        ('[service]\nstate_directory = "@"\n[[folder]]\nname = "half"\n', "@/models"),  # what can be read counts
        ('[service]\nmodels_directory = "@/m"\n', "@/m"),
        ("[a", "/var/lib/rmbgd/models"),
        (None, "/var/lib/rmbgd/models"),
    ],
)
def test_models_are_those_of_the_configuration(text, place, tmp_path, monkeypatch, capsys):
    if text is not None:
        (tmp_path / "rmbgd.toml").write_text(text.replace("@", str(tmp_path)))
    monkeypatch.setenv("RMBGD_CONFIG", str(tmp_path / "rmbgd.toml"))
    assert 0 == cli.main(["models", "list"])
    assert place.replace("@", str(tmp_path)) in capsys.readouterr().out.split()
