"""The CPU's answers to the golden image: computed once, found again, never mistaken for another model's."""

from __future__ import annotations

from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest

from rmbgd.config.load import HealthSettings
from rmbgd.engine.probe import GoldenReferences, Probe, file_name
from rmbgd.engine.types import EngineDescription
from rmbgd.errors import EngineLost
from rmbgd.testing.clock import FakeClock
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import InProcessWorker

BACKEND = partial(FakeBackend, np.empty(0, np.uint8))
SAID = EngineDescription("cuda:0", {"fake": {"alpha": "green channel"}}, (1,))
GREEN = BACKEND().golden("fake").alpha


@pytest.fixture
def make() -> Mock:
    """Makes workers with the fake engine, and counts them."""
    return Mock(side_effect=lambda: InProcessWorker(BACKEND))


def test_the_cpu_computes_once(tmp_path, make):
    """A second question, and a second start of the service, find the answer. A damaged file is computed anew."""
    first = GoldenReferences(tmp_path, make)
    answers = [first.of(SAID), first.of(SAID)]
    (file,) = tmp_path.iterdir()
    for damage in (file.read_bytes(), b"", b"PK\x03\x04 cut off", b"nonsense"):
        file.write_bytes(damage)
        answers += [GoldenReferences(tmp_path, make).of(SAID) for _ in range(2)]
    assert make.call_count == 4
    assert all(np.abs(answer["fake"] - GREEN).max() <= 1 / 65535 for answer in answers)


def test_other_weights_have_another_answer():
    """The digest, the patch order and the input size tell answers apart; how long a load took does not."""
    facts = {"sha256": "a", "patch_order": "tile_first", "input_size": [1, 1], "seconds": 1.0}
    same = file_name("m", facts | {"seconds": 2.0})
    assert same == file_name("m", facts)
    assert len({same, *(file_name("m", facts | {key: "x"}) for key in ("sha256", "patch_order", "input_size"))}) == 4
    assert file_name("m", facts | {"filter": "box"}) != same
    assert "/" not in file_name("/srv/my weights/model.safetensors", facts)


def test_another_torch_computes_the_references_anew(monkeypatch):
    """An update rounds otherwise: no device is judged by what an older version computed. In what the device itself
    computes has no part in it: the reference is float32."""
    before = file_name("m", {"sha256": "a", "precision": "float16"})
    assert before == file_name("m", {"sha256": "a", "precision": "bfloat16"})
    monkeypatch.setattr("importlib.metadata.version", lambda _package: "99.0")
    assert file_name("m", {"sha256": "a"}) != before


def test_weights_that_the_cpu_does_not_have_give_no_answer(tmp_path, make):
    """A GPU that loaded something else than the CPU under one name cannot be compared."""
    other = EngineDescription("cuda:0", {"fake": {"sha256": "damaged"}}, (1,))
    assert GoldenReferences(tmp_path, make).of(other) is None


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, make):
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        assert GoldenReferences(tmp_path / "file" / "golden", make).of(SAID) is not None
    assert make.call_count == 2


def test_a_cpu_that_fails_is_told(tmp_path):
    """The probe hears of it; no process and no file is left."""
    worker = InProcessWorker(partial(BACKEND, start="lost"))
    with pytest.raises(EngineLost):
        GoldenReferences(tmp_path, lambda: worker).of(SAID)
    assert worker.ended
    assert list(tmp_path.iterdir()) == []


def test_only_the_tests_themselves_count_against_the_limit_of_a_probe(make):
    """Not the start, which compiles kernels, nor what the CPU computes for comparison: they have their own limits."""
    clock, worker, report = FakeClock(), make(), Mock()

    def takes(seconds: float, call):
        def taking(*arguments):
            clock.advance(seconds)
            return call(*arguments)

        return taking

    worker.start, worker.canary, worker.golden = (
        takes(seconds, call) for seconds, call in ((500.0, worker.start), (3.0, worker.canary), (2.0, worker.golden))
    )
    references = Mock(of=takes(500.0, lambda _: {"fake": GREEN}))
    health = HealthSettings(canary_blocks=256)
    probe = Probe(1, worker, references, device="fake", sha256={}, baseline=None, health=health, clock=clock)
    probe.adopt()
    probe.run(report)
    assert report.call_args[0][1].report.test_seconds == 2 * 3.0 + 4 * 2.0
