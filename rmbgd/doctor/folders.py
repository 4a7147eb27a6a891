"""Folders, file system events, disk space, models and the service's own directories, by really trying.

Leaves nothing behind: every file it makes carries TRIAL in its name and is removed again. Knows nothing of devices.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from rmbgd import errors
from rmbgd.config import load as config
from rmbgd.doctor.checks import Finding, fail, ok, warn

TRIAL = ".rmbgd-doctor-"  # hidden, so that a running service leaves it alone
EVENT_PATIENCE = 5.0  # s for an event of our own making; milliseconds where events work
DIRECTORIES_MAXIMUM = 200_000  # directories counted below one input, to bound the time
GIBI = 1 << 30
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "virtiofs", "vboxsf"}


def examine(settings: config.Config) -> Iterator[Finding]:
    if not settings.folder:
        yield fail("folders", "the configuration names no [[folder]]", "add one; rmbgd check --print-default shows how")
    for folder in settings.folder:
        yield rights(folder)
        yield events(folder)
        yield space(folder, settings.pipeline.free_bytes_minimum)
    if settings.folder:
        yield watches(settings)
    yield own_directory("state", settings.service.state_directory)
    yield own_directory("runtime", settings.service.runtime_directory)
    if settings.service.log_file is not None:
        yield own_directory("log", settings.service.log_file.parent)
    names = {recipe.model for recipe in settings.recipe.values()} | {
        settings.recipe_of(folder).model for folder in settings.folder
    }
    for name in sorted(names or {config.Recipe().model}):
        yield model(name, settings.service.models_directory)


def rights(folder: config.Folder) -> Finding:
    """Whether files can be made, renamed and removed wherever the service does so."""
    need = f"folder {folder.name}"
    used = {"input": folder.input, "output": folder.output, "failed": folder.failed, "done": folder.done}
    places = {role: path for role, path in used.items() if path is not None}
    for role, path in places.items():
        reads_only = role == "input" and folder.originals == "keep"
        problem = _cannot_read(path) if reads_only else _cannot_write(path)
        if problem:
            return fail(need, f"{role} {path}: {problem}", _hint(path))
    own = folder.input / ".rmbgd"
    if own.exists() and (problem := _cannot_write(own)):
        return fail(need, f"claims {own}: {problem}", _hint(own))
    far = [role for role in ("failed", "done") if role in places and _device(places[role]) != _device(folder.input)]
    if far:
        return warn(
            need,
            f"writable; but {' and '.join(far)} lie on another file system than input, so originals are copied there",
            "put them on the file system of input: moving is then instant and survives a power cut",
        )
    return ok(need, f"{', '.join(places)} tried as user {os.geteuid()}")


def _cannot_read(path: Path) -> str:
    try:
        os.listdir(path)
    except OSError as error:
        return _cause(error)
    return ""


def _cannot_write(path: Path) -> str:
    """Why a file cannot be made, synced, renamed and removed in `path`; empty when it can."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=TRIAL, dir=path)
    except OSError as error:
        return _cause(error)
    try:
        os.write(descriptor, b"trial")
        os.fsync(descriptor)
        os.rename(name, f"{name}.renamed")
        name = f"{name}.renamed"
    except OSError as error:
        return _cause(error)
    finally:
        os.close(descriptor)
        os.unlink(name)
    return ""


CAUSES = {
    errno.ENOENT: "does not exist",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.ENOTDIR: "is no directory",
}


def _cause(error: OSError) -> str:
    return CAUSES.get(error.errno or 0, str(error.strerror))


def _hint(path: Path) -> str:
    return f"mkdir -p {path} and give it to the service's user; systemd/rmbgd.tmpfiles does both for /srv/rmbgd"


def _device(path: Path) -> int:
    return os.stat(path).st_dev


def events(folder: config.Folder) -> Finding:
    """Whether a change below the input is reported: makes one, and waits for word of it."""
    need = f"events {folder.name}"
    kind = file_system(folder.input)
    if folder.watch == "poll":
        return ok(need, f"not used: watch is poll ({kind})")
    if kind in REMOTE or kind.startswith("fuse"):
        return warn(need, f"{kind}: what other machines write causes no events; the folder is polled")
    try:
        heard = _hears(folder.input)
    except OSError as error:
        return warn(need, f"{kind}: cannot be watched ({error.strerror}); the folder is polled", _watch_hint())
    if not heard:
        return warn(need, f"{kind}: a change caused no event within {EVENT_PATIENCE:g} s; the folder is polled")
    return ok(need, f"{kind}: a change was reported")


def _hears(path: Path) -> bool:
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    heard = threading.Event()

    class Ear(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if TRIAL in os.fsdecode(event.src_path):
                heard.set()

    observer = Observer()
    observer.schedule(Ear(), os.fspath(path), recursive=False)
    observer.start()
    try:
        with tempfile.NamedTemporaryFile(prefix=TRIAL, dir=path):
            return heard.wait(EVENT_PATIENCE)
    finally:
        observer.stop()
        observer.join()


def watches(settings: config.Config) -> Finding:
    """Directories to be watched against what the kernel allows one user."""
    wanted = sum(_directories(folder.input) if folder.recursive else 1 for folder in settings.folder)
    allowed = _sysctl("max_user_watches")
    instances = _sysctl("max_user_instances")
    text = f"{wanted} directories to watch, {allowed} watches and {instances} instances allowed"
    if wanted >= allowed or instances < 8:
        return warn("inotify limits", f"{text}; what cannot be watched is polled", _watch_hint())
    return ok("inotify limits", text)


def _watch_hint() -> str:
    return "sysctl fs.inotify.max_user_watches=1048576 fs.inotify.max_user_instances=512, and in /etc/sysctl.d"


def _sysctl(name: str) -> int:
    with open(f"/proc/sys/fs/inotify/{name}", encoding="ascii") as file:
        return int(file.read())


def _directories(path: Path) -> int:
    count = 0
    for count, _ in enumerate(os.walk(path), start=1):
        if count >= DIRECTORIES_MAXIMUM:
            break
    return count


def file_system(path: Path) -> str:
    """The type of the file system that `path` lies on, as in /proc/self/mountinfo."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return "unknown"
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kind = "unknown"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                kind = after.split()[0]
    return kind


def space(folder: config.Folder, minimum: int) -> Finding:
    need = f"space {folder.name}"
    try:
        free = shutil.disk_usage(folder.output).free
    except OSError as error:
        return fail(need, f"{folder.output}: {_cause(error)}", _hint(folder.output))
    text = f"{free / GIBI:.1f} GiB free for cutouts, {minimum / GIBI:.1f} GiB kept free"
    if free < minimum:
        return fail(need, f"{text}: nothing is claimed until there is more", "make room, or lower free_bytes_minimum")
    return ok(need, text)


def own_directory(role: str, path: Path) -> Finding:
    need = f"{role} directory"
    problem = _cannot_write(path)
    if not problem:
        return ok(need, str(path))
    if problem == "does not exist" and path.is_relative_to("/run"):
        return warn(need, f"{path} does not exist now", "systemd makes it when it starts the service")
    return fail(need, f"{path}: {problem}", f"mkdir -p {path} and give it to the service's user")


def model(name: str, models: Path) -> Finding:
    """Present, whole, and with its licence accepted where that is asked."""
    from rmbgd.models import checkpoint
    from rmbgd.models import licences as consent
    from rmbgd.models import store as places

    need = f"model {name}"
    try:
        place = places.resolve(name, models)
        if place.entry is not None:
            consent.require(place.entry, models)
        digest = checkpoint.sha256_of(place.weights)
    except errors.ModelError as error:
        return fail(need, str(error))
    except OSError as error:
        return fail(need, f"{name}: {error.strerror}")
    stated = place.stated_sha256()
    for voice, expected in stated.items():
        if digest != expected:
            text = f"{place.weights}: not the file that {voice} states (sha256 {digest[:16]}...)"
            return fail(need, text, f"rmbgd models fetch {name}")
    checked = f"as {' and '.join(stated)} states" if stated else "nothing to compare with"
    return ok(need, f"{place.weights}, sha256 {digest[:16]}..., {checked}")
