"""docs/schema says what the service writes. Events and status of every scenario are checked where it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from rmbgd.events import EVENTS
from tests.support import schemas
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest
from tools import schema


@pytest.mark.parametrize("name", schema.DOCUMENTS)
def test_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schema.document(name))


def test_every_key_of_an_event_has_a_type() -> None:
    assert all(schema.type_of(event, key) in schema.TYPES for event, kind in EVENTS.items() for key in kind.keys)
    with pytest.raises(LookupError, match="what type the key 'colour' has"):
        schema.type_of("health", "colour")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "$: Additional properties are not allowed ('colour' was unexpected)"),
        ({"seconds": "3"}, "$.seconds: '3' is not of type 'number'"),
        ({"recovered": -1}, "$.recovered: -1 is less than the minimum of 0"),
        ({"device": ...}, "$: 'device' is a required property"),
    ],
)
def test_what_does_not_fit_is_found(change: dict[str, object], said: str) -> None:
    envelope = {"level": "info", "time": "t", "monotonic": 1.0, "boot_id": "", "pid": 1, "version": "1"}
    event = {"event": "service.ready", "seconds": 1.0, "device": "cpu", "recovered": 0} | envelope
    assert [] == schemas.problems_of_events([event])
    assert schemas.validator("event").is_valid(event)
    wrong = {key: value for key, value in (event | change).items() if value is not ...}
    assert [f"service.ready: {said}"] == schemas.problems_of_events([wrong])
    assert not schemas.validator("event").is_valid(wrong)


@pytest.mark.integration
def test_sidecars_status_and_events_are_what_their_schemas_say(tmp_path: Path) -> None:
    settings = {"service": {"status_interval": 0.5, "health_interval": 1.0}, "intake": {"incomplete_timeout": 1.0}}
    with ServiceUnderTest(tmp_path, settings=settings, recipe={"sidecar": "always"}) as service:
        service.serve_all({"a.png": sample_image(1), "b.jpg": b"no image at all", "c.png": sample_image(1)})
        service.wait_for("health")
        status = json.loads((service.runtime / "status.json").read_bytes())
    assert [] == schemas.problems("status", status)
    assert [] == schemas.problems("cutout", json.loads((service.output / "a.png.json").read_bytes()))
    assert [] == schemas.problems("failure", json.loads((service.failed / "b.jpg.error.json").read_bytes()))
    stopped = json.loads((service.runtime / "status.json").read_bytes())
    assert ("stopped", []) == (stopped["phase"], schemas.problems("status", stopped))
    assert {"image.done", "image.failed", "health", "service.start", "service.stop"} <= {
        each["event"] for each in service.events
    }
