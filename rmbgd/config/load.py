"""Loads the configuration from one TOML file and reports all of its problems at once."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args, get_origin

from pydantic import Field, ValidationError, create_model

from rmbgd import naming as names
from rmbgd.config.presets import Preset, built_in, extended, resolve
from rmbgd.config.problems import ConfigFile, Mistake, dotted, mistakes_of, no_table, syntax_problem, unknown
from rmbgd.config.settings import (
    UNCHECKED,
    Bucket,
    EngineSettings,
    Folder,
    GpuSettings,
    HealthSettings,
    HookSettings,
    IntakeSettings,
    LimitSettings,
    Look,
    Name,
    PipelineSettings,
    Recipe,
    S3Settings,
    ServiceSettings,
    Settings,
    SourceSettings,
    check_name,
)
from rmbgd.config.toml_places import Location, locate
from rmbgd.errors import ConfigError, explain
from rmbgd.wording import did_you_mean

__all__ = [
    "Bucket",
    "Config",
    "EngineSettings",
    "Folder",
    "GpuSettings",
    "HealthSettings",
    "HookSettings",
    "IntakeSettings",
    "LimitSettings",
    "Look",
    "PipelineSettings",
    "Recipe",
    "S3Settings",
    "ServiceSettings",
    "SourceSettings",
    "examine",
    "load",
    "overlay",
    "parse",
    "read",
]


_BUILT_IN = Recipe()  # "default" where the configuration sets none; checked once, not for each image


class Config(Settings):
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    source: SourceSettings = Field(default_factory=SourceSettings)
    s3: S3Settings = Field(default_factory=S3Settings)
    intake: IntakeSettings = Field(default_factory=IntakeSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    gpu: GpuSettings = Field(default_factory=GpuSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    hooks: HookSettings = Field(default_factory=HookSettings)
    recipe: dict[Name, Recipe] = Field(default_factory=dict)
    preset: dict[Name, Preset] = Field(default_factory=dict)
    folder: list[Folder] = Field(default_factory=list)
    bucket: list[Bucket] = Field(default_factory=list)

    def contradictions(self) -> Iterator[tuple[Sequence[Location], str]]:
        seen: set[str] = set()
        known = sorted({*self.recipe, "default"})
        orders: dict[str, tuple[str, str]] = {}  # model -> the first recipe with it, its patch_order
        for place, folder in self._roots():
            if folder.name in seen:
                text = f"'{folder.name}' is the name of another folder, too; give each its own"
                yield [(*place, "name")], text
            seen.add(folder.name)
            if folder.recipe not in known:
                hint = did_you_mean(str(folder.recipe), known) or f"there is {', '.join(known)}"
                yield [(*place, "recipe")], f"no recipe '{folder.recipe}'; {hint}"
                continue
            recipe = self.recipe_of(folder)
            first, order = orders.setdefault(recipe.model, (folder.recipe, recipe.patch_order))
            if order != recipe.patch_order:
                text = f"the recipes '{first}' and '{folder.recipe}' disagree about the patch_order of model"
                names = (folder.recipe, first)
                places = [("recipe", name, key) for name in names for key in ("patch_order", "model")]
                yield places, f"{text} '{recipe.model}'; one file has one order"
            if folder.review is None and any(recipe.review_below or look.preset for look in recipe.looks):
                text = f"is missing: recipe '{folder.recipe}' sends images to people; name a directory for them"
                yield [(*place, "review")], text
            if isinstance(folder, Folder) and folder.kind == "frames":
                yield from self._of_frames(place, folder.recipe, recipe, steady=folder.temporal == "steady")
            if isinstance(folder, Folder) and folder.kind == "films":
                yield from self._of_films(place, folder.recipe, recipe)
        if self.source.kind == "jetstream":
            yield from self._in_a_fleet()
        elif self.bucket:
            text = 'is only for [source] kind = "jetstream": no folder event tells of an object (docs/fleet.md)'
            yield [("bucket", 0, "input")], text
        yield from self._presets_in_use()
        limits = self.limits
        for name, recipe in self.recipe.items():
            tables: list[Location] = [(), *(("deliver", number) for number in range(len(recipe.deliver)))]
            for place, look in zip(tables, (recipe, *recipe.deliver), strict=True):
                sides = [int(side) for side in look.canvas.split("x")] if look.canvas else [0, 0]
                if sides[0] * sides[1] > limits.pixels or max(sides) > limits.side:
                    text = f"{look.canvas} is beyond limits.pixels = {limits.pixels} or limits.side = {limits.side}"
                    yield (
                        [("recipe", name, *place, "canvas"), ("limits", "pixels"), ("limits", "side")],
                        f"{text}: make it smaller, or raise the limit",
                    )
        # rgb 3 + source alpha 1 + rgba 4 bytes a pixel, and some alignment
        largest, arena = 8 * limits.pixels + 4096, self.pipeline.arena_bytes
        if arena < largest:
            text = f"{arena} bytes cannot hold one image of limits.pixels = {limits.pixels}: raise it to {largest}, or "
            yield (
                [("pipeline", "arena_bytes"), ("limits", "pixels")],
                f"{text}lower limits.pixels to {(arena - 4096) // 8}",
            )
        if self.engine.device == "cpu" and self.health.require_gpu:
            text = '"cpu" contradicts health.require_gpu = true: images would wait for ever; drop one'
            yield [("engine", "device"), ("health", "require_gpu")], text

    def _of_films(self, place: Location, name: str, recipe: Recipe) -> Iterator[tuple[Sequence[Location], str]]:
        if used := recipe.of_images_alone:
            text = f"'{name}' sets {used[0]}, which films cannot have; name another recipe for them"
            yield [(*place, "recipe"), ("recipe", name, used[0])], text

    def _of_frames(
        self, place: Location, name: str, recipe: Recipe, *, steady: bool
    ) -> Iterator[tuple[Sequence[Location], str]]:
        if recipe.review_below or any(look.preset for look in recipe.looks):
            text = f"'{name}' sends images to people, and frames of a film cannot wait for them; name another recipe"
            yield [(*place, "recipe")], text
        if steady and any(look.mask_bits == 16 for look in recipe.looks):
            text = f"'{name}' makes masks of 16 bits, and alpha is steadied in 8; drop its mask_bits, or temporal"
            yield [(*place, "temporal"), (*place, "recipe")], text

    @property
    def root_names(self) -> list[str]:
        """Of folders and buckets."""
        return [folder.name for folder in self.folder] + [bucket.name for bucket in self.bucket]

    def _roots(self) -> Iterator[tuple[Location, Folder | Bucket]]:
        for number, folder in enumerate(self.folder):
            yield ("folder", number), folder
        for number, bucket in enumerate(self.bucket):
            yield ("bucket", number), bucket

    def _in_a_fleet(self) -> Iterator[tuple[Sequence[Location], str]]:
        """Roots that machines share: nobody claims by moving, and names must not depend on who computes, or when."""
        for number, folder in enumerate(self.folder):
            if folder.originals != "keep":
                text = 'a root of a fleet keeps its originals, as several machines read them; write "keep"'
                yield [("folder", number, "originals"), ("source", "kind")], f'is "{folder.originals}": {text}'
        refusals: dict[str, Location] = {}
        for table, root in self._roots():
            mine, failed = (*table, "failed"), str(root.failed).rstrip("/")
            if (other := refusals.setdefault(failed, mine)) != mine:
                text = "rejected by both, an image would lose what one of them said"
                yield [mine, other], f"{failed} is another root's, too: {text}; give each its own"
        for name in {root.recipe for _, root in self._roots()}:
            for place, each in enumerate(self.recipe[name].deliver if name in self.recipe else ()):
                fields = names.fields_of(each.path)
                where: list[Location] = [("recipe", name, "deliver", place, "path"), ("source", "kind")]
                if "date" in fields:
                    yield (
                        where,
                        f"{each.path!r} has {{date}}: done again another day, an image would be there twice",
                    )
                elif place == 0 and "size" in fields:
                    yield (
                        where,
                        f"{each.path!r} has {{size}}; the name of the first file must be known before",
                    )
                elif "dir" not in fields:
                    yield where, f"{each.path!r} has no {{dir}}: images of several folders would want one name"

    def _presets_in_use(self) -> Iterator[tuple[Sequence[Location], str]]:
        """Presets that cannot be, and looks that contradict themselves with theirs."""
        known = {**built_in(), **self.preset}
        for name in self.preset:
            if name in built_in():
                yield [("preset", name)], f"'{name}' is a preset that comes with rmbgd; give yours another name"
            try:
                extended(name, known)
            except KeyError as error:
                yield [("preset", name, "extends")], str(error.args[0])
            except ValidationError as error:
                yield [("preset", name, "make")], str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        for name, recipe in self.recipe.items():
            if any(look.preset for look in recipe.looks):
                for where, text in self._with_presets(recipe).equal_paths():
                    yield [("recipe", name, *each) for each in where], text
            places: list[Location] = [("deliver", number) for number in range(len(recipe.deliver))] or [()]
            for place, look in zip(places, recipe.looks, strict=True):
                if look.preset and look.preset not in known:
                    hint = did_you_mean(look.preset, known) or f"there is {', '.join(sorted(known))}"
                    yield [("recipe", name, *place, "preset")], f"no preset '{look.preset}'; {hint}"
                elif look.preset and look.preset in self.presets:
                    for where, text in resolve(look, self.presets).faults():
                        told = f"with preset '{look.preset}': {text}"
                        yield [("recipe", name, *place, *each) for each in (("preset",), *where)], told

    @cached_property
    def presets(self) -> Mapping[str, Preset]:
        """By name, those that come with the package and those of the configuration, each with what it extends."""
        found = dict(built_in())
        for name in self.preset:
            with contextlib.suppress(KeyError, ValidationError):  # that is a problem of the configuration
                found[name] = extended(name, {**built_in(), **self.preset})
        return found

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Without what was computed from the settings that `update` replaces."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("presets", "_resolved"):
            copied.__dict__.pop(name, None)
        return copied

    def spool_of(self, bucket: Bucket) -> Folder:
        """Where a worker's pipeline works on images of a bucket, as if it were a drop folder."""
        spool = self.service.state_directory / "spool" / bucket.name
        roles = ("input", "output", "failed", *(["review"] if bucket.review else []))
        kept = ("name", "recipe", "recursive", "priority", "latency", "latency_target", "ignore")
        settings = {name: getattr(bucket, name) for name in kept} | {role: spool / role for role in roles}
        return Folder(**settings, originals="keep")

    def with_spools(self) -> Self:
        """With a folder for each bucket."""
        return self.model_copy(update={"folder": [*self.folder, *map(self.spool_of, self.bucket)]})

    def recipe_of(self, folder: Folder | Bucket) -> Recipe:
        """With the settings of its presets. In a fleet the sidecar of a file is the record of what was made."""
        recipe = self.resolved(folder.recipe)
        if self.source.kind == "folders" or folder.name in {bucket.name for bucket in self.bucket}:
            return recipe
        return recipe.model_copy(update={"sidecar": "always"})

    def resolved(self, recipe: str) -> Recipe:
        """A recipe by name, with the settings of its presets."""
        return self._resolved.get(recipe, _BUILT_IN)

    def extension_of(self, folder: Folder) -> str:
        """Of the one output of an image or a film of this folder, where its recipe lists none."""
        recipe = self.recipe_of(folder)
        return names.FILM_EXTENSIONS[recipe.film] if folder.kind == "films" else names.EXTENSIONS[recipe.format]

    @cached_property
    def _resolved(self) -> Mapping[str, Recipe]:
        recipes = {"default": _BUILT_IN, **self.recipe} if self.source.kind == "jetstream" else self.recipe
        return {name: self._with_presets(recipe) for name, recipe in recipes.items()}

    def _with_presets(self, recipe: Recipe) -> Recipe:
        if not any(look.preset in self.presets for look in recipe.looks):
            return recipe
        if not recipe.deliver:
            return resolve(recipe, self.presets)
        return recipe.model_copy(update={"deliver": [resolve(each, self.presets) for each in recipe.deliver]})

    @property
    def adjusted(self) -> list[dict[str, object]]:
        """Keys of the event `config.adjusted` for each setting whose value is read as another one."""
        engine = self.engine
        read_as = (
            ("engine.tries", engine.tries, engine.tries_used,
             "one fault with an image alone may be an accident, and proves nothing against the image"),
            ("engine.precision", engine.precision, engine.precision_used,
             "quantising cost more than the products in float8 saved; auto is what is quickest and as good"),
        )  # fmt: skip
        return [
            {"setting": setting, "configured": configured, "used": used, "why": why}
            for setting, configured, used, why in read_as
            if configured != used
        ]


def load(path: Path) -> Config:
    """The configuration in `path`. Raises ConfigError with every problem."""
    file = read(path)
    config, mistakes = examine(file.tables)
    if mistakes:
        raise ConfigError(file.problems(mistakes))
    return config


def read(path: Path) -> ConfigFile:
    """The tables of a file, unchecked. Raises ConfigError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        text = "there is no configuration; `rmbgd init FOLDER` makes one, or name another with --config"
        raise ConfigError(f"{path}: {text}") from error
    except OSError as error:
        raise ConfigError(f"{explain(error)} with --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([syntax_problem(path, text, error)]) from error
    return ConfigFile(path, tables, locate(text, tables))


def parse(tables: Mapping[str, Any], *, origin: str = "configuration") -> Config:
    """The configuration in plain tables. Raises ConfigError with every problem."""
    config, mistakes = examine(tables)
    if mistakes:
        raise ConfigError([f"{origin}: {dotted(mistake)}" for mistake in mistakes])
    return config


def examine(tables: Mapping[str, Any]) -> tuple[Config, list[Mistake]]:
    """The configuration, and every problem in it.

    Where there are problems, it is what can be used of it, so that more can be looked for: a setting at fault has its
    default, or None if it has none.
    """
    try:
        return Config.model_validate(tables), []
    except ValidationError:
        pass
    mistakes = [unknown((name,), Config.model_fields) for name in tables if name not in Config.model_fields]
    parts: dict[str, Any] = {"recipe": {}, "preset": {}, "folder": [], "bucket": []}
    arrays: dict[str, type[Settings]] = {"folder": Folder, "bucket": Bucket}
    for name, field in Config.model_fields.items():
        content = tables.get(name, [] if name in arrays else {})
        if name in arrays and isinstance(content, list):
            parts[name] = [_usable(arrays[name], each, (name, n), mistakes) for n, each in enumerate(content)]
        elif name in ("recipe", "preset") and isinstance(content, Mapping):
            for key, each in content.items():
                parts[name][key] = _usable(Recipe if name == "recipe" else Preset, each, (name, key), mistakes)
                try:
                    if isinstance(each, Mapping):
                        check_name(key)
                except ValueError as error:
                    mistakes.append(Mistake((name, key), str(error), key=True))
        elif name in parts:
            mistakes.append(no_table((name,)))
        else:
            parts[name] = _usable(field.annotation, content, (name,), mistakes)
    config = Config.model_construct(**parts)
    _contradictions(config, (), mistakes)
    return config, mistakes


def _usable(model: Any, content: object, where: Location, mistakes: list[Mistake]) -> Any:
    """An instance of `model` with what can be used of `content`; the rest is added to `mistakes`."""
    fields = model.model_fields
    if isinstance(content, Mapping):
        content = dict(content)
        whole: set[Location] = set()
        for name, inner in _arrays_of_tables(model):
            if isinstance(tables := content.get(name), list):
                content[name] = [_usable(inner, each, (*where, name, n), mistakes) for n, each in enumerate(tables)]
                whole |= {(name, n) for n in range(len(tables))}
        for name, field in fields.items():
            if name in content and isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                content[name] = _usable(field.annotation, content[name], (*where, name), mistakes)
                whole.add((name,))
        try:
            return model.model_validate(content)
        except ValidationError as error:
            # Those of a whole table are its contradictions.
            entries = [entry for entry in error.errors() if entry["loc"] and entry["loc"] not in whole]
        mistakes += [mistake for entry in entries for mistake in mistakes_of(entry, where, fields)]
        wrong = {str(entry["loc"][0]) for entry in entries}
    else:
        mistakes.append(no_table(where))
        content, wrong = {}, set(fields)
    without: dict[str, Any] = {
        name: (Any, None if field.is_required() else field.default) for name, field in fields.items() if name in wrong
    }
    usable = create_model(model.__name__, __base__=model, **without).model_validate(
        {name: value for name, value in content.items() if name in fields and name not in wrong}, context=UNCHECKED
    )
    _contradictions(usable, where, mistakes)
    return usable


def _arrays_of_tables(model: Any) -> Iterator[tuple[str, type[Settings]]]:
    for name, field in model.model_fields.items():
        for inner in get_args(field.annotation):
            if get_origin(field.annotation) is list and isinstance(inner, type) and issubclass(inner, Settings):
                yield name, inner


def _contradictions(settings: Settings, where: Location, mistakes: list[Mistake]) -> None:
    """Add those between settings that are right, each by itself."""
    wrong = [mistake.location for mistake in mistakes]

    def is_wrong(location: Location) -> bool:
        return any(location[: len(each)] == each[: len(location)] for each in wrong)

    for places, text in settings.contradictions():
        if not any(is_wrong((*where, *place)) for place in places):
            mistakes.append(Mistake((*where, *places[0]), text))


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
        return settings.model_dump(exclude_unset=True) | given

    merged: dict[str, Any] = {table: over(getattr(base, table), table) for table in tables if table != "preset"}
    merged["preset"] = {name: preset.model_dump(exclude_unset=True) for name, preset in base.preset.items()}
    merged["recipe"] = {recipe: over(base.recipe.get(recipe, Recipe()), "recipe")}
    config = parse(merged, origin="command line")
    return config, config.recipe[recipe]
