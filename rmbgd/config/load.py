"""Loads the configuration from one TOML file and reports all of its problems at once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from rmbgd.config.settings import (
    EngineSettings,
    Folder,
    GpuSettings,
    HealthSettings,
    HookSettings,
    IntakeSettings,
    LimitSettings,
    Name,
    PipelineSettings,
    Recipe,
    ServiceSettings,
    Settings,
)
from rmbgd.errors import ConfigError, explain

__all__ = [
    "Config",
    "EngineSettings",
    "Folder",
    "GpuSettings",
    "HealthSettings",
    "HookSettings",
    "IntakeSettings",
    "LimitSettings",
    "PipelineSettings",
    "Recipe",
    "ServiceSettings",
    "load",
    "overlay",
    "parse",
]


_BUILT_IN = Recipe()  # "default" where the configuration sets none; checked once, not for each image


class Config(Settings):
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    intake: IntakeSettings = Field(default_factory=IntakeSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    gpu: GpuSettings = Field(default_factory=GpuSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    hooks: HookSettings = Field(default_factory=HookSettings)
    recipe: dict[Name, Recipe] = Field(default_factory=dict)
    folder: list[Folder] = Field(default_factory=list)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Config:
        names = [folder.name for folder in self.folder]
        problems = [f"folder '{name}' is defined twice" for name in sorted({n for n in names if names.count(n) > 1})]
        known = set(self.recipe) | {"default"}
        for folder in self.folder:
            if folder.recipe not in known:
                near = difflib.get_close_matches(folder.recipe, known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"there is {', '.join(sorted(known))}"
                problems.append(f"folder '{folder.name}': no recipe '{folder.recipe}'; {hint}")
        for name, recipe in sorted(self.recipe.items()):
            if recipe.canvas:
                width, height = (int(side) for side in recipe.canvas.split("x"))
                if width * height > self.limits.pixels or max(width, height) > self.limits.side:
                    problems.append(
                        f"recipe.{name}.canvas = {recipe.canvas} is beyond limits.pixels = {self.limits.pixels} or "
                        f"limits.side = {self.limits.side}: make it smaller, or raise the limit"
                    )
        # rgb 3 + source alpha 1 + rgba 4 bytes a pixel, and some alignment
        largest = 8 * self.limits.pixels + 4096
        if self.pipeline.arena_bytes < largest:
            allowed = (self.pipeline.arena_bytes - 4096) // 8
            problems.append(
                f"pipeline.arena_bytes = {self.pipeline.arena_bytes} cannot hold one image of limits.pixels = "
                f"{self.limits.pixels}: raise it to {largest}, or lower limits.pixels to {allowed}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def recipe_of(self, folder: Folder) -> Recipe:
        return self.recipe.get(folder.recipe, _BUILT_IN)

    @property
    def adjusted(self) -> list[dict[str, object]]:
        """Keys of the event `config.adjusted` for each setting whose value is read as another one."""
        tries, used = self.engine.tries, self.engine.tries_used
        why = "one fault with an image alone may be an accident, and proves nothing against the image"
        return [{"setting": "engine.tries", "configured": tries, "used": used, "why": why}] if tries != used else []


def load(path: Path) -> Config:
    """The configuration in `path`. Raises ConfigError with every problem."""
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{explain(error)} with --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}; see config/rmbgd.toml for the notation") from error
    return parse(tables, origin=str(path))


def parse(tables: Mapping[str, Any], *, origin: str = "configuration") -> Config:
    """The configuration in plain tables. Raises ConfigError with every problem."""
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError([f"{origin}: {problem}" for problem in _problems(error)]) from error


def overlay(
    path: Path | None, recipe: str, tables: Collection[str], options: Mapping[str, Mapping[str, Any]]
) -> tuple[Config, Recipe]:
    """`tables` and one recipe of the file at `path`, or the defaults, with command line options over them.

    options  setting -> value per table, and of the recipe under "recipe"; None where an option was not given

    Raises ConfigError with every problem, also for a recipe that the file does not have.
    """
    base = Config() if path is None else load(path)
    if recipe != "default" and recipe not in base.recipe:
        raise ConfigError(f"no recipe '{recipe}'; there is {', '.join(sorted({'default', *base.recipe}))}")

    def over(settings: Settings, table: str) -> dict[str, Any]:
        given = {name: value for name, value in options.get(table, {}).items() if value is not None}
        return settings.model_dump() | given

    merged: dict[str, Any] = {table: over(getattr(base, table), table) for table in tables}
    merged["recipe"] = {recipe: over(base.recipe.get(recipe, Recipe()), "recipe")}
    config = parse(merged, origin="command line")
    return config, config.recipe[recipe]


TYPES = {  # pydantic's names for a value of another type -> what it must be
    "int_type": "must be a whole number, without quotes",
    "float_type": "must be a number, without quotes",
    "bool_type": "must be true or false, without quotes",
    "string_type": "must be a text, in quotes",
    "path_type": "must be a path, in quotes",
}


def _problems(error: ValidationError) -> list[str]:
    texts: list[str] = []
    for entry in error.errors():
        where = ".".join(str(part) for part in entry["loc"] if part != "[key]")
        if entry["type"] == "extra_forbidden":
            known = _siblings(entry["loc"])
            near = difflib.get_close_matches(str(entry["loc"][-1]), known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
            texts.append(f"{where}: unknown setting; {hint}")
        elif entry["type"] == "value_error":
            lines = str(entry["ctx"]["error"]).splitlines()
            texts += [f"{where}: {line}" if where else line for line in lines]
        elif entry["loc"] == ("folder",) or entry["type"] in ("model_type", "dict_type"):
            texts.append(f"{where}: {_heading(entry['loc'])}")
        else:
            value = f" (is {entry['input']!r})" if not isinstance(entry["input"], (dict, list)) else ""
            texts.append(f"{where}: {TYPES.get(entry['type'], entry['msg'])}{value}")
    return texts


def _heading(location: tuple[int | str, ...]) -> str:
    """How to write the table at `location`, where something else stands."""
    match location:
        case ("folder", *_):
            return "write [[folder]] with two brackets above the settings of each folder: there may be several"
        case ("recipe", *_):
            return "write [recipe.NAME] above the settings of a recipe, such as [recipe.default]"
    return f"write [{location[0]}], with one bracket and once, above its settings"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The settings known beside the last part of `location`: those of its table, or all tables."""
    if len(location) == 1:
        return list(Config.model_fields)
    name = str(location[0])
    table: Any = {"recipe": Recipe, "folder": Folder}.get(name, Config.model_fields[name].annotation)
    return list(table.model_fields)
