"""Compares the configuration with the installed systemd unit: folders that its sandbox hides or makes read-only.

And makes the drop-in that shows them to the service: systemd.exec(5), "Sandboxing".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from rmbgd.config.load import Config, Folder
from rmbgd.doctor.checks import SYSTEMD_RUNS, CheckResult, fail, ok, systemctl, warn
from rmbgd.service.exit_recorder import STATUS_FILE
from rmbgd.service.unit_files import UNIT
from rmbgd.telemetry.jsonl import process_start

HOMES = tuple(map(PurePath, ("/home", "/root", "/run/user")))  # that ProtectHome is about
OWN_TMP = tuple(map(PurePath, ("/tmp", "/var/tmp")))  # noqa: S108, that PrivateTmp is about
BASES = {
    "StateDirectory": "/var/lib",
    "LogsDirectory": "/var/log",
    "CacheDirectory": "/var/cache",
    "RuntimeDirectory": "/run",
}
PROPERTIES = (
    "LoadState", "ExecStart", "ProtectHome", "ProtectSystem", "PrivateTmp", "ReadWritePaths", "InaccessiblePaths",
    "BindPaths", *BASES,
)  # fmt: skip
SHIPPED = tuple(map(PurePath, ("/srv/rmbgd", "/var/lib/rmbgd", "/var/log/rmbgd", "/var/cache/rmbgd", "/run/rmbgd")))
TOO_WIDE = {*HOMES, *map(PurePath, ("/", "/etc", "/media", "/mnt", "/opt", "/srv", "/usr", "/var", "/var/lib"))}
CURE = "`rmbgd service install --system` writes the drop-in that lifts it; by hand: systemd/drop-ins/{}"
BIND = re.compile(r"/.*?:(/.*?):(?:no)?rbind(?: |$)")  # `systemctl show` quotes no path among these; the destination
STATUS_MAXIMUM = 1 << 20  # bytes
WAITS = {
    "missing": "it does not exist",
    "denied": "the service may not read it",
    "not_mounted": "nothing is mounted there",
    "in_use": "another service claims from it",
}


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a unit lets its service see and change; `config` as its ExecStart names it."""

    config: str = ""
    home: str = "no"
    strict: bool = False
    private_tmp: bool = False
    writable: tuple[PurePath, ...] = ()
    bound: tuple[PurePath, ...] = ()
    hidden: tuple[PurePath, ...] = ()

    def obstacle(self, path: PurePath, *, writes: bool) -> tuple[str, str] | None:
        """(why the service cannot use `path`, the drop-in that cures it); None where nothing is in the way."""
        if below(path, self.bound):
            return None
        if self.private_tmp and below(path, OWN_TMP):
            return "has a /tmp of its own (PrivateTmp=yes), in which nobody else's files are", "20-folders.conf"
        if below(path, self.hidden):
            return "may not see it (InaccessiblePaths=)", "20-folders.conf"
        if below(path, HOMES) and self.home in ("yes", "tmpfs"):
            return f"may not see it (ProtectHome={self.home})", "25-home.conf"
        if writes and below(path, HOMES) and self.home == "read-only":
            return "may only read it (ProtectHome=read-only)", "25-home.conf"
        if writes and self.strict and not below(path, self.writable):
            return "may only read it (ProtectSystem=strict, and not in ReadWritePaths=)", "20-folders.conf"
        return None


def below(path: PurePath, places: tuple[PurePath, ...]) -> bool:
    return any(place == path or place in path.parents for place in places)


def sandbox(shown: Mapping[str, str]) -> Sandbox:
    """From what `systemctl show` says of the unit."""
    made = [PurePath(base, name) for key, base in BASES.items() for name in shown.get(key, "").split()]
    config = re.search(r"--config[ =](\S+)", shown.get("ExecStart", ""))
    return Sandbox(
        config=config[1] if config else "",
        home=shown.get("ProtectHome", "no"),
        strict=shown.get("ProtectSystem") == "strict",
        private_tmp=shown.get("PrivateTmp") == "yes",
        writable=(*_paths(shown.get("ReadWritePaths", "")), *made),
        bound=tuple(map(PurePath, BIND.findall(shown.get("BindPaths", "")))),
        hidden=tuple(_paths(shown.get("InaccessiblePaths", ""))),
    )


def _paths(words: str) -> Iterator[PurePath]:
    for word in re.findall(r'"(?:[^"\\]|\\.)*"|\S+', words):
        yield PurePath(re.sub(r"\\(.)", r"\1", word.strip('"')).lstrip("-+"))


def check_unit(config: Config, path: Path) -> Iterator[CheckResult]:
    """Of the configuration at `path`. Nothing where systemd does not run, or where its unit has another one."""
    if not os.path.isdir(SYSTEMD_RUNS):
        return
    shown = dict(line.partition("=")[::2] for line in systemctl("show", UNIT, "-p", ",".join(PROPERTIES)).splitlines())
    found = sandbox(shown)
    if shown.get("LoadState") == "loaded" and found.config:
        if os.path.realpath(found.config) == os.path.realpath(path):
            yield from judge_unit(config, found)
        elif found.config != str(path):
            yield ok("unit", f"{UNIT} serves another configuration, {found.config}")
    yield from check_running(config)


def judge_unit(config: Config, found: Sandbox) -> Iterator[CheckResult]:
    blocked = False
    for need, path, writes in _uses(config):
        real = PurePath(os.path.realpath(path))
        if (obstacle := found.obstacle(real, writes=writes)) is not None:
            why, drop_in = obstacle
            blocked = True
            yield fail(need, f"{path}: {UNIT} {why}", CURE.format(drop_in))
    if not blocked:
        yield ok("unit", f"{UNIT} may use every folder of the configuration")


def _uses(config: Config) -> Iterator[tuple[str, Path, bool]]:
    """(what it is for, directory, does the service write there)."""
    for folder in config.folder:
        for role, path in _roles(folder).items():
            yield f"folder {folder.name}, {role}", path, not (role == "input" and folder.originals == "keep")
    for setting, file in (
        ("service.log_file", config.service.log_file),
        ("health.metrics_file", config.health.metrics_file),
    ):
        if file is not None:
            yield setting, file.parent, True
    yield "service.state_directory", config.service.state_directory, True
    yield "service.runtime_directory", config.service.runtime_directory, True
    yield "service.models_directory", config.service.models_directory, False


def _roles(folder: Folder) -> dict[str, Path]:
    roles = {"input": folder.input, "output": folder.output, "failed": folder.failed, "done": folder.done}
    roles |= {"review": folder.review}
    return {role: path for role, path in roles.items() if path is not None}


def check_running(config: Config) -> Iterator[CheckResult]:
    """Folders that the running service waits for, by its status file."""
    inputs = {folder.name: folder.input for folder in config.folder}
    for name, facts in _folders_now(config.service.runtime_directory).items():
        if name in inputs and facts.get("mode") == "waiting":
            cause = str(facts.get("cause") or "it has not been looked at yet")
            text = f"{inputs[name]}: the running service waits for it: {WAITS.get(cause, cause)}"
            judged = fail if cause == "denied" else warn
            yield judged(f"folder {name}", text, "see the lines above, or `rmbgd status`")


def _folders_now(runtime: Path) -> dict[str, Mapping[str, object]]:
    try:
        with open(runtime / STATUS_FILE, "rb") as file:
            record = json.loads(file.read(STATUS_MAXIMUM))
        if record["phase"] == "stopped" or process_start(record["pid"]) != record["process_start"]:
            return {}
        return {str(name): facts for name, facts in record["folders"].items() if isinstance(facts, dict)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not running, or not for us to read
        return {}


def drop_in(config: Config) -> str:
    """Shows the service the folders of the configuration that the shipped unit does not; empty where it shows all."""
    wanted: list[PurePath] = []
    for folder in config.folder:
        paths = [PurePath(os.path.realpath(path)) for path in _roles(folder).values()]
        parent = PurePath(os.path.commonpath(paths))
        # Named singly, each would be a mount of its own, and moving from one to another would become copying.
        wanted += paths if parent in TOO_WIDE else [parent]
    for file in (config.service.log_file, config.health.metrics_file):
        wanted += [PurePath(os.path.realpath(file.parent))] if file is not None else []
    models = PurePath(os.path.realpath(config.service.models_directory))  # only read, so /data needs nothing
    wanted += [models] if below(models, (*HOMES, *OWN_TMP)) else []
    wanted += [PurePath(config.service.state_directory), PurePath(config.service.runtime_directory)]
    outside = [path for path in dict.fromkeys(wanted) if not below(path, SHIPPED)]
    outside = [path for path in outside if not any(other in path.parents for other in outside)]
    if not outside:
        return ""
    lines = ["# Written by `rmbgd service install` from the configuration: folders that the unit itself does not show."]
    lines += ["[Unit]", *(f"RequiresMountsFor={_word(path)}" for path in outside), "", "[Service]"]
    if homes := [path for path in outside if below(path, HOMES)]:
        lines += ["# The rest of /home stays hidden.", "ProtectHome=tmpfs"]
        lines += [f"BindPaths={_word(path, '-', colons=True)}" for path in homes]
    lines += [f"BindPaths={_word(path, '-', colons=True)}" for path in outside if below(path, OWN_TMP)]
    for path in outside:
        lines += [f"{setting}={_word(path, '-')}" for setting in ("ReadWritePaths", "NoExecPaths")]
    return "\n".join(lines) + "\n"


def _word(path: PurePath, prefix: str = "", *, colons: bool = False) -> str:
    """One word of a unit file, systemd.syntax(7)."""
    text = str(path).replace(":", "\\:") if colons else str(path)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{prefix}{escaped}"'
