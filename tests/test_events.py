"""What the source emits is what the vocabulary says, and the other way round."""

from __future__ import annotations

import ast
import re

import pytest

from rmbgd.events import EVENTS, RecordedEvents, problems_with
from tests.support.source import calls, modules

# How the source calls its injected `emit`; what wraps one is called by the names that it is kept under.
EMITTERS = {"emit", "_emit", "counters", "_counters"}
NAME = re.compile(r"[a-z_]+(\.[a-z_]+)?")
LEVELS = {"debug", "info", "warning", "error", "critical"}


def test_every_emitted_event_is_in_the_vocabulary() -> None:
    emitted = [
        (f"{module}:{call.lineno}", call.args[0].value, call.keywords)
        for module, tree in modules().items()
        for name, call in calls(tree)
        if name in EMITTERS and call.args and isinstance(call.args[0], ast.Constant)
        if NAME.fullmatch(str(call.args[0].value))
    ]
    wrong = []
    for where, event, keywords in emitted:
        keys: dict[str, object] = {word.arg: None for word in keywords if word.arg is not None}
        spread = len(keys) < len(keywords)  # **keys: which ones is seen when it runs
        problems = problems_with(event, keys)
        wrong += [f"{where}: {problem}" for problem in problems if not (spread and "is missing" in problem)]
    assert len(emitted) > 20
    assert [] == wrong


def test_every_event_of_the_vocabulary_is_emitted() -> None:
    trees = [tree for module, tree in modules().items() if module != "rmbgd.events"]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert set() == set(EVENTS) - texts


def test_each_event_has_a_level_and_a_meaning() -> None:
    assert {kind.level for kind in EVENTS.values()} <= LEVELS
    assert all(kind.meaning for kind in EVENTS.values())
    assert [] == [event for event in EVENTS if not NAME.fullmatch(event)]


def test_keys_with_a_question_mark_may_be_absent_and_no_others() -> None:
    keys: dict[str, object] = {"result": "signal", "code": "killed", "status": "KILL"}
    assert [] == problems_with("service.exit", keys)
    assert [] == problems_with("service.exit", keys | {"uptime": 1.0})
    assert ["service.exit: key 'code' is missing"] == problems_with("service.exit", {"result": "", "status": ""})
    assert ["service.exit: unknown key 'reason'"] == problems_with("service.exit", keys | {"reason": ""})
    assert ["unknown event 'service.gone'"] == problems_with("service.gone", {})


def test_recorded_events_refuse_what_the_vocabulary_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown key"):
        RecordedEvents()("service.reload", colour="red")
