"""POLICY: when the service starts in safe mode, for how long, and what it does without then.

Reads no file and no clock: crashloop.py does.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmbgd.config import Config

DEVICE, MODEL = "cpu", "u2netp"  # what every installation has and needs the least of


@dataclass(frozen=True, slots=True)
class Rules:
    """starts   that died, from which on the next one is careful; 0: never
    window   s in which they must have begun
    quiet    s without a death after which safe mode is left, doubled each time that it did not help, up to `longest`
    """

    starts: int
    window: float
    quiet: float
    longest: float


def rules_of(config: Config) -> Rules:
    service = config.service
    return Rules(service.safe_starts, service.safe_window, service.safe_quiet, service.safe_quiet_maximum)


def is_needed(dead: int, rules: Rules) -> bool:
    """`dead`: starts that died, of those within the window."""
    return 0 < rules.starts <= dead


def quiet_time(times: int, rules: Rules) -> float:
    """Seconds in safe mode, when it was entered for the `times`-th time without a run between that worked for long."""
    return float(min(rules.quiet * 2.0 ** min(max(times - 1, 0), 64), rules.longest))


def reduced(config: Config) -> Config:
    """The same folders and recipes with the least that can fail: CPU, embedded model, one picture at a time."""
    model = {"model": MODEL, "model_sha256": "", "patch_order": "auto"}
    recipes = {folder.recipe: config.recipe_of(folder).model_copy(update=model) for folder in config.folder}
    return config.model_copy(
        update={
            "engine": config.engine.model_copy(update={"device": DEVICE, "precision": "auto"}),
            "health": config.health.model_copy(update={"require_gpu": False}),
            "pipeline": config.pipeline.model_copy(
                update={"batch_maximum": 1, "decode_threads": 1, "finish_threads": 1, "queue": 1, "batch_wait": 0.0}
            ),
            "recipe": recipes,
        }
    )
