"""One readable line for every event: nothing missing, nothing that steers a terminal, not too long."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.events import EVENTS
from rmbgd.telemetry.messages import LINE_MAXIMUM, SENTENCES, message

DONE = {
    "path": "shoe.jpg", "output": "shoe.png", "width": 1280, "height": 1280, "model": "u2netp", "device": "cpu",
    "milliseconds": {"total": 1234.5}, "verdict": "ok",
}  # fmt: skip
MOVED = {"from": "cuda:0", "to": "cpu", "model": "u2netp", "reason": "temperature", "reading": 91.0, "threshold": 85.0}
HEALTH = {
    "waiting": 3, "in_flight": 1, "oldest_waiting": 12.3, "done": 120, "failed": 2, "rss_bytes": 84_000_000,
    "device": "cuda:0", "uptime": 7300.0, "engine": {"devices": {"cuda:0": {"temperature": 61.0}, "cpu": {}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("event", "keys", "line"),
    [
        ("image.done", DONE, "shoe.jpg -> shoe.png (1280x1280, u2netp on cpu, 1.2 s)"),
        ("image.done", DONE | {"verdict": "empty"},
         "shoe.jpg -> shoe.png (1280x1280, u2netp on cpu, 1.2 s): no subject"),
        ("image.failed", {"path": "doc.pdf", "reason": "unidentified", "detail": "not an image"},
         "rejected doc.pdf: unidentified (not an image)"),
        ("image.failed", {"path": "Vase mit Ümläut.JPG", "reason": "empty", "detail": ""},
         "rejected Vase mit Ümläut.JPG: empty"),
        ("image.failed", {"path": "{reason}[x].jpg", "reason": "empty"}, "rejected {reason}[x].jpg: empty"),
        ("engine.failover", MOVED | {"images": [1, 2]},
         "failover from cuda:0 to cpu with u2netp: temperature, 91 °C, limit 85 °C; 2 images moved"),
        ("engine.failback", MOVED | {"seconds": 200.0}, "back from cuda:0 to cpu with u2netp after 3 min 20 s"),
        ("engine.degraded", {"device": "cuda:0", "reason": "throttled", "reading": 63.2},
         "cuda:0 is degraded: throttled, 63.2"),
        ("service.ready", {"device": "cpu", "seconds": 3.21, "recovered": 1},
         "ready on cpu after 3.2 s, 1 image resumed"),
        ("health", HEALTH,
         "3 waiting, the oldest for 12 s, 1 in work, 120 done, 2 rejected; cuda:0 at 61 °C, 84.0 MB, up 2 h 1 min"),
        ("health", HEALTH | {"paused": "disk_full", "engine": None, "oldest_waiting": None},
         "paused (disk_full); 3 waiting, 1 in work, 120 done, 2 rejected; cuda:0, 84.0 MB, up 2 h 1 min"),
        ("storage.resumed", {"kind": "disk_full", "seconds": 61.0}, "resumed after 61 s of disk_full"),
        ("no.such", {"colour": "red"}, "no.such: colour=red"),
    ],
)  # fmt: skip
def test_line_reads_like_a_sentence(event: str, keys: dict[str, object], line: str) -> None:
    assert line == message(event, keys)


HOSTILE = (
    "a\x1b[2J\n\u202egpj.exe",
    "\udcff" * 10,
    "Ümläut " * 90,
    "\u2066x\u2028y\x9b",
    0.123456789,
    17,
    float("inf"),
    None,
    [],
    [3],
)


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_has_a_printable_line_whatever_its_keys_hold(event: str) -> None:
    """With all of its keys, and with those alone that are never absent."""
    assert event in SENTENCES
    every = [key.rstrip("?") for key in EVENTS[event].keys]
    certain = [key for key in EVENTS[event].keys if not key.endswith("?")]
    for keys, value in itertools.product((every, certain), HOSTILE):
        line = message(event, dict.fromkeys(keys, value))
        assert line.isprintable()
        assert 0 < len(line) <= LINE_MAXIMUM
        assert not {"{", "}"} & set(line)
        assert "None" not in line


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(EVENTS)), st.data())
def test_no_value_ends_the_log(event: str, data: st.DataObject) -> None:
    keys = {key.rstrip("?"): data.draw(values) for key in EVENTS[event].keys}
    assert message(event, keys).isprintable()


def test_each_sentence_names_keys_of_its_event() -> None:
    """A key that nobody writes would always read 'unknown'."""
    for event, kind in EVENTS.items():
        filled = message(event, {key.rstrip("?"): "here" for key in kind.keys})
        assert "unknown" not in filled, event
