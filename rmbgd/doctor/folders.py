"""Checks folders, file system events, disk space, models and the service's own directories, by really trying.

Leaves nothing behind: every file that it makes has TRIAL in its name and is removed again.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from rmbgd.access_rights import user_name
from rmbgd.config.layout import folders_in_use
from rmbgd.config.load import Config, Folder, Recipe
from rmbgd.doctor.checks import GIBI, USER, CheckResult, fail, ok, warn
from rmbgd.errors import ModelError, explain
from rmbgd.mounts import file_system, is_local
from rmbgd.naming import CLAIM_FOLDER
from rmbgd.paths import DEFAULT_STATE_DIRECTORY

ROLES = ("input", "output", "failed", "done", "review")
TRIAL = ".rmbgd-doctor-"  # hidden, so that a running service leaves it alone
EVENT_TIMEOUT = 5.0  # s for an event of our own making; milliseconds where events work
DIRECTORIES_MAXIMUM = 200_000  # directories counted below one input, to bound the time
WATCH_HINT = "sysctl fs.inotify.max_user_watches=1048576 fs.inotify.max_user_instances=512, and in /etc/sysctl.d"
CAUSES = {
    errno.ENOENT: "does not exist",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.ENOTDIR: "is no directory",
}


def check_folders(config: Config) -> Iterator[CheckResult]:
    if not config.folder and not config.bucket:
        yield fail("folders", "the configuration names no [[folder]]", "add one; rmbgd check --print-default shows how")
    in_use = folders_in_use(config)
    service = other_user(config)
    if service:
        text = f"this user is not the service's, which is {service}; only root and {service} can try its rights"
        yield warn("rights", text, f"sudo rmbgd doctor, or runuser -u {service} -- rmbgd doctor")
    for number, folder in enumerate(config.folder):
        if (holder := in_use.get(number)) is not None:
            text = f"{holder} claims from {folder.input} now; a service of this configuration would wait for it"
            yield fail(f"owner {folder.name}", text, "stop one of the two services, or give each its own input")
        if not service:
            yield rights(folder)
            yield events(folder)
        yield space(folder, config.pipeline.free_bytes_minimum)
    if config.folder:
        yield watches(config)
    if not service:
        yield own_directory("state", config.service.state_directory)
        yield own_directory("runtime", config.service.runtime_directory)
        if config.service.log_file is not None:
            yield own_directory("log", config.service.log_file.parent)
    used = [*config.recipe.values(), *(config.recipe_of(folder) for folder in config.folder)] or [Recipe()]
    for name in sorted({recipe.model for recipe in used}):
        yield model(name, config.service.models_directory)


def service_user(config: Config) -> int | None:
    """Whom the service runs as, which the state directory says; None where this user may not look."""
    state = config.service.state_directory
    if state == DEFAULT_STATE_DIRECTORY:
        with suppress(KeyError):
            return pwd.getpwnam(USER).pw_uid
    try:
        return state.stat().st_uid
    except PermissionError:
        return None
    except OSError:
        return os.geteuid()


def other_user(config: Config) -> str:
    """Whose service it is, where that is not this user's, who is not root either."""
    owner, me = service_user(config), os.geteuid()
    return "" if me in (0, owner) else "another user" if owner is None else user_name(owner)


def rights(folder: Folder) -> CheckResult:
    """Whether files can be made, renamed and removed wherever the service does so."""
    need = f"folder {folder.name}"
    for role, path, problem in refusals(folder):
        return fail(need, f"{'claims' if path.name == CLAIM_FOLDER else role} {path}: {problem}", _hint(path))
    paths = {role: getattr(folder, role) for role in ROLES if getattr(folder, role) is not None}
    device = folder.input.stat().st_dev
    if far := [role for role in ("failed", "done") if role in paths and paths[role].stat().st_dev != device]:
        text = f"writable; but {' and '.join(far)} lie on another file system than input, so originals are copied there"
        return warn(need, text, "put them on the file system of input: moving is then instant and survives a power cut")
    return ok(need, f"{', '.join(paths)} tried as user {os.geteuid()}")


def refusals(folder: Folder) -> Iterator[tuple[str, Path, str]]:
    """(setting, directory, why) of each that this user cannot use as the service does."""
    for role in ROLES:
        path = getattr(folder, role)
        if path is not None:
            reads_only = role == "input" and folder.originals == "keep"
            if problem := why_unusable(path, writes=not reads_only):
                yield role, path, problem
    if folder.input and os.path.isdir(claims := folder.input / CLAIM_FOLDER) and (problem := why_unusable(claims)):
        yield "input", claims, problem


def why_unusable(path: Path, *, writes: bool = True) -> str:
    """Why `path` cannot be listed, or a file not be made, synced, renamed and removed in it; empty when it can."""
    try:
        if not writes:
            os.listdir(path)
            os.stat(f"{path}/.")  # to see names is not to reach the files
            return ""
        descriptor, name = tempfile.mkstemp(prefix=TRIAL, dir=path)
        try:
            os.write(descriptor, b"trial")
            os.fsync(descriptor)
            os.rename(name, f"{name}.renamed")
            name = f"{name}.renamed"
        finally:
            os.close(descriptor)
            os.unlink(name)
    except OSError as error:
        return _cause(error)
    return ""


def _cause(error: OSError) -> str:
    return CAUSES.get(error.errno or 0, str(error.strerror))


def _hint(path: Path) -> str:
    return f"mkdir -p {path} and give it to the service's user; systemd/rmbgd.tmpfiles does both for /srv/rmbgd"


def events(folder: Folder) -> CheckResult:
    """Whether a change below the input is reported: makes one, and waits for its event."""
    need = f"events {folder.name}"
    kind = file_system(str(folder.input))
    if folder.watch == "poll":
        return ok(need, f"not used: watch is poll ({kind})")
    if not is_local(kind):
        return warn(need, f"{kind}: what other machines write causes no events; the folder is polled")
    try:
        reported = _reports_events(folder.input)
    except OSError as error:
        return warn(need, f"{kind}: cannot be watched ({error.strerror}); the folder is polled", WATCH_HINT)
    if not reported:
        return warn(need, f"{kind}: a change caused no event within {EVENT_TIMEOUT:g} s; the folder is polled")
    return ok(need, f"{kind}: a change was reported")


def _reports_events(path: Path) -> bool:
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    seen = threading.Event()

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if TRIAL in os.fsdecode(event.src_path):
                seen.set()

    logging.getLogger("watchdog").addHandler(logging.NullHandler())  # it logs an error when it is stopped in mid-wait
    observer = Observer()
    observer.schedule(Handler(), os.fspath(path), recursive=False)
    observer.start()
    try:
        with tempfile.NamedTemporaryFile(prefix=TRIAL, dir=path):
            return seen.wait(EVENT_TIMEOUT)
    finally:
        observer.stop()
        observer.join()


def watches(config: Config) -> CheckResult:
    trees = [os.walk(folder.input) if folder.recursive else [folder.input] for folder in config.folder]
    wanted = sum(1 for tree in trees for _ in islice(tree, DIRECTORIES_MAXIMUM))
    limits = Path("/proc/sys/fs/inotify")
    allowed, instances = (int((limits / f"max_user_{name}").read_text("ascii")) for name in ("watches", "instances"))
    text = f"{wanted} directories to watch, {allowed} watches and {instances} instances allowed"
    if wanted >= allowed or instances < 8:
        return warn("inotify limits", f"{text}; what cannot be watched is polled", WATCH_HINT)
    return ok("inotify limits", text)


def space(folder: Folder, minimum: int) -> CheckResult:
    need = f"space {folder.name}"
    try:
        free = shutil.disk_usage(folder.output).free
    except OSError as error:
        return fail(need, f"{folder.output}: {_cause(error)}", _hint(folder.output))
    text = f"{free / GIBI:.1f} GiB free for cutouts, {minimum / GIBI:.1f} GiB kept free"
    if free < minimum:
        return fail(need, f"{text}: nothing is claimed until there is more", "make room, or lower free_bytes_minimum")
    return ok(need, text)


def own_directory(role: str, path: Path) -> CheckResult:
    need = f"{role} directory"
    problem = why_unusable(path)
    if not problem:
        return ok(need, str(path))
    if problem == CAUSES[errno.ENOENT] and path.is_relative_to("/run"):
        return warn(need, f"{path} does not exist now", "systemd makes it when it starts the service")
    return fail(need, f"{path}: {problem}", f"mkdir -p {path} and give it to the service's user")


def model(name: str, models: Path) -> CheckResult:
    """Whether the weights are there, whole, and their licence accepted where that is needed."""
    from rmbgd.models import checkpoint, licences, store

    need = f"model {name}"
    try:
        place = store.resolve(name, models)
        if place.entry is not None:
            licences.require(place.entry, models)
        digest = checkpoint.sha256_of(place.weights)
    except ModelError as error:
        return fail(need, str(error))
    except OSError as error:
        return fail(need, explain(error))
    stated = place.stated_sha256()
    for source, expected in stated.items():
        if digest != expected:
            text = f"{place.weights}: not the file that {source} states (sha256 {digest[:16]}...)"
            return fail(need, text, f"rmbgd models fetch {name}")
    checked = f"as {' and '.join(stated)} states" if stated else "nothing to compare with"
    return ok(need, f"{place.weights}, sha256 {digest[:16]}..., {checked}")
