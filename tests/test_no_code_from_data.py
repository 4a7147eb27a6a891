"""Nothing in the service turns data into code (B37): read from the source, and tried with a pickle."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

from rmbgd.errors import Reason
from tests.support import audit
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest
from tests.support.source import calls, imports, modules

UNPICKLERS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "jsonpickle"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
ALLOWED = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}
PATIENCE = 2.0  # s for what may be an image that is still being written


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_module_can_run_what_it_reads(module: str) -> None:
    tree = modules()[module]
    assert {name.partition(".")[0] for name in imports(tree)} & UNPICKLERS == set()
    for name, call in calls(tree):
        assert not (isinstance(call.func, ast.Name) and name in RUNNERS), f"{module}:{call.lineno} calls {name}"
        owner = getattr(getattr(call.func, "value", None), "id", "")
        assert (owner, name) not in {("torch", "load"), ("os", "system"), ("os", "popen")}, f"{module}:{call.lineno}"
        given = {word.arg: word.value for word in call.keywords if word.arg in ALLOWED}
        for word, value in given.items():
            assert isinstance(value, ast.Constant), f"{module}:{call.lineno}: {word} is not a constant"
            assert value.value is ALLOWED[word], f"{module}:{call.lineno}: {word} is {value.value}"
        if (owner, name) == ("np", "load"):
            assert "allow_pickle" in given, f"{module}:{call.lineno}: say allow_pickle=False"


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.integration
def test_a_pickle_in_the_drop_folder_is_no_image(tmp_path: Path) -> None:
    """Under the names of images and of models: refused by its content, and its code has not run."""
    ran = tmp_path / "ran"
    pickled = pickle.dumps(Hostile(ran))
    names = ["weights.pth", "model.pt", "image.png", "model.safetensors"]
    data = dict.fromkeys(names, pickled * 20) | {"good.png": sample_image(1)}
    with ServiceUnderTest(tmp_path / "service", settings={"intake": {"incomplete_timeout": PATIENCE}}) as service:
        service.drop_all(data)
        service.wait_for_endings(len(data))
    audit.assert_settled(service, data, bad=dict.fromkeys(names, Reason.UNIDENTIFIED))
    assert not ran.exists()
    pickle.loads(pickled)
    assert ran.exists(), "the pickle was harmless: the test showed nothing"
