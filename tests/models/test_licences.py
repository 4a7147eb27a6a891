from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest

from rmbgd.errors import ModelError
from rmbgd.models import licences
from rmbgd.models.registry import REGISTRY

BOUND = REGISTRY["rmbg-2.0"]
NOW = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)


def test_a_bound_model_is_refused_until_accepted_and_a_free_one_is_not(tmp_path):
    assert licences.require(REGISTRY["birefnet"], tmp_path) is None
    with pytest.raises(ModelError) as refusal:
        licences.require(BOUND, tmp_path)
    for word in ("CC-BY-NC-4.0", "rmbgd models accept rmbg-2.0", "birefnet", BOUND.licence_url):
        assert word in str(refusal.value)


def test_acceptance_says_who_when_what(tmp_path):
    record = licences.accept(BOUND, tmp_path, who="alice (uid 1000)", now=NOW)
    assert licences.require(BOUND, tmp_path) == record
    written = json.loads(licences.record_path(BOUND, tmp_path).read_text())
    assert written.pop("host")
    model = {"model": "rmbg-2.0", "licence": "CC-BY-NC-4.0", "licence_url": BOUND.licence_url}
    assert written == model | {"accepted_by": "alice (uid 1000)", "accepted_at": "2026-03-01T12:30:15+00:00"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("CC-BY-NC-4.0", "CC-BY-NC-3.0"),
        lambda text: text.replace('"rmbg-2.0"', '"another"'),
        lambda text: "[]",
    ],
    ids=["half", "another licence", "another model", "not a record"],
)
def test_a_record_that_says_something_else_does_not_count(tmp_path, damage):
    licences.accept(BOUND, tmp_path, who="alice", now=NOW)
    path = licences.record_path(BOUND, tmp_path)
    path.write_text(damage(path.read_text()))
    assert licences.accepted(BOUND, tmp_path) is None


def test_the_service_may_read_the_record_and_nothing_else_is_written(tmp_path):
    before = os.umask(0o077)
    try:
        licences.accept(BOUND, tmp_path, who="alice", now=NOW)
        licences.accept(BOUND, tmp_path, who="bob", now=NOW)
    finally:
        os.umask(before)
    record = licences.record_path(BOUND, tmp_path)
    assert record.stat().st_mode & 0o777 == 0o644
    assert record.parent.stat().st_mode & 0o777 == 0o755
    assert os.listdir(tmp_path / licences.FOLDER) == ["rmbg-2.0.json"]
    assert licences.require(BOUND, tmp_path).accepted_by == "bob"


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / licences.FOLDER).write_text("a file where the folder should be")
    with pytest.raises(ModelError, match=r"cannot be recorded.*--models-dir"):
        licences.accept(BOUND, tmp_path, who="alice", now=NOW)


def test_sudo_is_seen_through(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setenv("SUDO_UID", "1000")
    assert licences.acting_person() == "alice (uid 1000, through sudo)"
