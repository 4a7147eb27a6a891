"""`rmbgd bench`: options become settings, findings are shown and end with one JSON line, errors say what to do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmbgd.cli import bench
from rmbgd.cli import main as cli
from rmbgd.errors import Exit
from tests.bench.machines import machine


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the machine that is measured: a fake engine in the real child process."""

    def make(gpus: int = 0, **fake: Any) -> None:
        monkeypatch.setattr("rmbgd.bench.run.default_machine", lambda: machine(gpus, **fake))

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a.jpg", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    return folder


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


def quick(photos: Path, *more: str) -> int:
    return cli.main(["bench", "--pictures", str(photos), "--seconds", "0.1", *more])


def test_options_replace_settings() -> None:
    words = "--model birefnet --device cpu --precision float16 --batch 4,1 --models-dir /m"
    found, recipe = bench.settings(parsed(*words.split()))
    assert ("birefnet", 4, Path("/m")) == (
        recipe.model, found.pipeline.batch_maximum, found.service.models_directory
    )  # fmt: skip
    assert ("cpu", "float16") == (found.engine.device, found.engine.precision)


def test_configuration_is_what_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "rmbgd.toml"
    tables = ("[pipeline]\nfinish_threads = 7", "[limits]\nside = 4096", '[engine]\ndevice = "cpu"')
    path.write_text("\n".join((*tables, "[recipe.shop]", 'format = "tiff"')))
    found, recipe = bench.settings(parsed("--config", str(path), "--recipe", "shop"))
    assert (7, 4096) == (found.pipeline.finish_threads, found.limits.side)
    assert ("cpu", "tiff") == (found.engine.device, recipe.format)


@pytest.mark.parametrize(
    "wrong", [("--batch", "3"), ("--batch", "x"), ("--seconds", "0"), ("--precision", "float99"), ("--bach", "1")]
)
def test_wrong_option_is_a_usage_error(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *wrong])
    assert Exit.USAGE == ended.value.code
    assert wrong[0] in capsys.readouterr().err


def test_wrong_device_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert Exit.USAGE == cli.main(["bench", "--device", "gpu"])
    assert "rmbgd bench: engine.device: " in capsys.readouterr().err


@pytest.mark.integration
def test_people_get_tables_and_progress_on_stderr(on: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on(seconds=0.001)
    assert Exit.OK == quick(photos, "--batch", "1,2")
    shown, progress = capsys.readouterr()
    assert "Files through the whole pipeline" in shown
    assert "Bound by " in shown
    assert "which is not counted" in shown
    assert "{" not in shown
    steps = ["starting the engine", "batches of 1", "batches of 2", "files through the whole pipeline"]
    assert steps == progress.splitlines()


@pytest.mark.integration
def test_programs_get_json_alone(on: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on()
    assert Exit.OK == quick(photos, "--json")
    found = json.loads(capsys.readouterr().out)
    assert {"batches", "line", "device", "model", "version", "start_seconds"} <= set(found)
    assert {"count": 2, "smallest": [40, 30], "largest": [40, 30]} == found["pictures"]


@pytest.mark.integration
def test_size_that_is_not_offered_is_reported(on: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on(batch_sizes=(1, 2))
    assert Exit.OK == quick(photos, "--batch", "1,4")
    assert "no batches of 4: the engine offers 1, 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [("--device cuda", "rmbgd doctor"), ("--model birefnet --models-dir /nowhere", "rmbgd models fetch birefnet")],
)
def test_missing_gpu_or_model_is_exit_78(
    words: str, said: str, on: Any, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on(gpus=0)
    assert Exit.CONFIGURATION == quick(photos, *words.split())
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--pictures", "--scratch"])
def test_missing_folder_is_exit_78(option: str, on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on()
    assert Exit.CONFIGURATION == cli.main(["bench", option, str(tmp_path / "nowhere")])
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


@pytest.mark.integration
def test_device_that_fails_is_exit_1(on: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on(script=["ok", "ok", "ok", "lost"])
    assert Exit.FAILED == quick(photos)
    captured = capsys.readouterr()
    assert ("", True) == (captured.out, "the script says that the device is lost" in captured.err)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_gpu_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert Exit.OK == cli.main(["bench", "--device", "cuda", "--seconds", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert "cuda:0" == found["device"]
    assert [1, 2, 4, 8] == [row["size"] for row in found["batches"]]
    assert all(row["memory"]["nvml"] > 100e6 for row in found["batches"])
    assert found["line"]["per_second"] > 0
