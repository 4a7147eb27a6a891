"""The CPU's answers to the golden image: computed once, found again, never mistaken for another model's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from rmbgd.engine.arena import Arena
from rmbgd.engine.probe import GoldenReferences, file_name
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineLost
from rmbgd.testing.engine import FakeBackend

pytestmark = pytest.mark.integration

FAKE = "rmbgd.testing.engine:create"
SAID = EngineDescription("cuda:0", {"fake": {"alpha": "green channel"}}, (1,))
GREEN = FakeBackend(np.empty(0, np.uint8)).golden("fake").alpha


class Makers:
    """Makes workers with the fake engine, and counts them."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.made = arena, 0
        self.options: dict[str, object] = {}

    def __call__(self) -> EngineWorker:
        self.made += 1
        limits = {"start_timeout": 60, "batch_timeout": 60}
        return EngineWorker(self.arena, FAKE, self.options, on_output=lambda line: None, **limits)


@pytest.fixture
def make() -> Iterator[Makers]:
    with Arena(1 << 16) as arena:
        yield Makers(arena)


def test_the_cpu_computes_once(tmp_path, make):
    """A second question, and a second start of the service, find the answer."""
    first = GoldenReferences(tmp_path / "golden", make)
    answers = [first.of(SAID), first.of(SAID), GoldenReferences(tmp_path / "golden", make).of(SAID)]
    assert make.made == 1
    assert all(np.abs(answer["fake"] - GREEN).max() <= 1 / 65535 for answer in answers)


def test_a_damaged_file_is_computed_anew(tmp_path, make):
    """It is replaced by a good one."""
    GoldenReferences(tmp_path, make).of(SAID)
    (file,) = tmp_path.iterdir()
    for damage in (b"", b"PK\x03\x04 cut off", b"nonsense"):
        file.write_bytes(damage)
        for _ in range(2):
            assert np.abs(GoldenReferences(tmp_path, make).of(SAID)["fake"] - GREEN).max() <= 1 / 65535
    assert make.made == 4


def test_other_weights_have_another_answer():
    """The digest, the patch order and the input size tell answers apart; how long a load took does not."""
    facts = {"sha256": "a", "patch_order": "tile_first", "input_size": [1, 1], "seconds": 1.0}
    same = file_name("m", facts | {"seconds": 2.0})
    assert same == file_name("m", facts)
    assert len({same, *(file_name("m", facts | {key: "x"}) for key in ("sha256", "patch_order", "input_size"))}) == 4
    assert "/" not in file_name("/srv/my weights/model.safetensors", facts)


def test_weights_that_the_cpu_does_not_have_give_no_answer(tmp_path, make):
    """A GPU that loaded something else than the CPU under one name cannot be compared."""
    other = EngineDescription("cuda:0", {"fake": {"sha256": "damaged"}}, (1,))
    assert GoldenReferences(tmp_path, make).of(other) is None


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, make):
    """The answer is computed at every start."""
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        assert GoldenReferences(tmp_path / "file" / "golden", make).of(SAID) is not None
    assert make.made == 2


def test_a_cpu_that_fails_is_told(tmp_path, make):
    """The probe hears of it; no process and no file is left."""
    make.options = {"start": "lost"}
    with pytest.raises(EngineLost):
        GoldenReferences(tmp_path, make).of(SAID)
    assert list(tmp_path.iterdir()) == []
