"""What `rmbgd backfill --ray` says before a cluster is asked for anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmbgd.cli import backfill, main
from rmbgd.errors import Exit


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--ray", "0"], "'0' is no number of actors from 1 to 1000"),
        (["--ray", "many"], "'many' is no number of actors"),
        (["--ray", "2", "--gpus", "-1"], "'-1' is no number of GPUs"),
        (["--ray", "2", "--gpus", "1.5"], "'1.5' is no number of GPUs; write a part of one like 0.5, or 0 to 16"),
        (["--ray", "2", "--gpus", "17"], "'17' is no number of GPUs"),
    ],
)
def test_numbers_that_are_none_are_named(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=str(int(Exit.USAGE))):
        main.main(["backfill", "shop", *words])
    assert named in capsys.readouterr().err


def test_without_the_library_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backfill, "is_installed", lambda module: module != "ray")
    assert main.main(["backfill", "shop", "--ray", "2", "--config", str(tmp_path / "none")]) == Exit.CONFIGURATION
    assert "--ray needs ray: pip install 'rmbgd[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["frames", "films"])
def test_actors_take_images_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backfill, "is_installed", lambda _: True)
    places = "".join(f'{role} = "{tmp_path / role}"\n' for role in ("input", "output", "failed"))
    root = f'[[folder]]\nname = "takes"\nkind = "{kind}"\noriginals = "keep"\n{places}'
    (config := tmp_path / "rmbgd.toml").write_text(f'[source]\nkind = "jetstream"\n{root}')
    assert main.main(["backfill", "takes", "--ray", "2", "--config", str(config)]) == Exit.FAILED
    assert f"root 'takes' has kind = \"{kind}\", and actors take images alone; leave out" in capsys.readouterr().err
