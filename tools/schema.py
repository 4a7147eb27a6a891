"""JSON Schema (draft 2020-12) of what rmbgd writes for programs: events, status, sidecars, `eval --json`.

Later versions may add keys, so the schemas are open; `closed` makes them strict, for tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rmbgd.errors import REASON_TEXT
from rmbgd.events import ENVELOPE, EVENTS

Schema = dict[str, Any]
TYPES: dict[str, Schema] = {
    "any": {},
    "text": {"type": "string"},
    "text or null": {"type": ["string", "null"]},
    "time": {"type": "string", "format": "date-time"},
    "time or null": {"type": ["string", "null"], "format": "date-time"},
    "count": {"type": "integer", "minimum": 0},
    "count or null": {"type": ["integer", "null"], "minimum": 0},
    "number": {"type": "number"},
    "number or null": {"type": ["number", "null"]},
    "share": {"type": "number", "minimum": 0, "maximum": 1},
    "flag": {"type": "boolean"},
    "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "digest or null": {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "counts": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "table": {"type": "object"},
    "table or null": {"type": ["object", "null"]},
    "tables": {"type": "object", "additionalProperties": {"type": "object"}},
    "list of tables": {"type": "array", "items": {"type": "object"}},
    "table of counts": {"type": "object", "additionalProperties": {"type": "integer"}},
    "table of numbers": {"type": "object", "additionalProperties": {"type": "number"}},
    "table of texts": {"type": "object", "additionalProperties": {"type": "string"}},
    "level": {"enum": ["debug", "info", "warning", "error", "critical"]},
    "verdict": {"enum": ["ok", "review", "empty", "full"]},
    "reason": {"enum": [str(reason) for reason in REASON_TEXT]},
}
# The type of each key, by its name; `event.key` stands before `key`.
KEYS: dict[str, str] = {
    key: name
    for name, keys in {
        "any": "configured reading threshold used",
        "text": "aside boot_id cause code codec config decision detail device error event file_system fingerprint "
        "folder format from gate holder hook host how kind lease line mode model operator_action output path person "
        "python quarantine reason recipe result server_version servers setting source stage start "
        "sequence state state_directory status to traceback version what why worker",
        "text or null": "copy paused",
        "time": "time",
        "time or null": "copy_time",
        "count or null": "film.started.frames of",
        "count": "adopted apart arena_bytes arena_resident armed attempt batch bytes bytes_in bytes_out contender_pid "
        "descriptors done ended_pid engine_tries exit_code failed health.threads height in_flight job jobs ledger_rows "
        "empty first frame frames last left missing pid postponed published restarts returned rows rss_bytes "
        "service.ready.recovered set_aside skipped streams reviews temporaries told trips unknown waiting wanted "
        "watches width",
        "number": "film_seconds heartbeat monotonic rate seconds unusual until uptime window",
        "number or null": "film.progress.left film.started.film_seconds oldest_waiting",
        "share": "coverage score soft",
        "flag": "duplicate recovered reused waits",
        "level": "level",
        "verdict": "verdict",
        "reason": "image.failed.reason",
        "digest": "sha256_in sha256_out",
        "texts": "causes folders notes reasons threads",
        "counts": "batch_sizes images",
        "table": "engine engine.started.detail flicker review",
        "list of tables": "outputs",
        "tables": "channels engine.batching.folders models",
        "table of counts": "unwritten",
        "table of numbers": "milliseconds",
        "table of texts": "standby",
    }.items()
    for key in keys.split()
}
# What stands in status.json beside `health`, and in both sidecars: type, and meaning where the name does not say it.
STATUS = {
    "phase": ("text", "starting, ready, stopping, stopped"),
    "written_at": ("time", ""),
    "monotonic": ("number", "s on the monotonic clock, when written"),
    "interval": ("number", "s between two status files"),
    "pid": ("count", "of the service"),
    "process_start": ("count or null", "clock ticks since boot; tells the process from another with its pid"),
    "boot_id": ("text", ""),
    "invocation_id": ("text", "systemd's, or empty"),
    "version": ("text", ""),
    "started": ("number", "s on the monotonic clock"),
    "started_at": ("time", ""),
    "per_minute": ("table of numbers", "images a minute, by window: 1m, 5m"),
    "stalled": ("texts", "threads without progress"),
    "last_problem": ("table or null", "the last event of level warning or worse"),
    "folders": ("tables", "how each drop folder is watched"),
    "arena_kept": ("count", "bytes that a device has page-locked"),
    "film?": (
        "table or null",
        "the film in work: folder, path, frames, of, rate, left (s), seconds; null when there is none",
    ),
    "safe_mode": ("table or null", "causes, left_in, waits; null when it is off"),
    "config?": ("text", "configuration file"),
    "cpu_models?": ("tables", "how the CPU computes each model: runtime, its version, precision, and why that"),
    "recent?": ("list of tables", "the last outcomes, newest first"),
}
CUTOUT = {
    "folder": ("text", "name of the drop folder"),
    "path": ("text", "of the input, below the drop folder"),
    "job": ("count", "number of the job in the ledger"),
    "output": ("text", "path below the output folder"),
    "sha256": ("digest", "of the output"),
    "bytes": ("count", "size of the output"),
    "source": ("table of counts", "the input: bytes, mtime_ns"),
    "width": ("count", "px, of the input"),
    "height": ("count", "px, of the input"),
    "format": ("text", "of the input"),
    "notes": ("texts", "oddities of the input that were corrected"),
    "verdict": ("verdict", ""),
    "device": ("text", "that computed it"),
    "model": ("text", "that computed it"),
    "coverage": ("share", "mean alpha"),
    "soft": ("share", "of soft-edge pixels"),
    "peak": ("share", "largest alpha"),
    "batch": ("count", "images in the same batch"),
    "engine_tries?": ("count", "runs it took, when an engine fault made it more than one"),
    "outputs?": ("list of tables", "every file of the image, as in image.done"),
    "fingerprint?": ("text", "this and all below: in a fleet; of the version of the input, SIZE-MTIME_NS"),
    "recipe?": ("text", "name"),
    "done?": ("table", "what image.done said of it"),
    "rmbgd?": ("text", "version"),
}
FAILURE = {
    "reason": ("reason", ""),
    "meaning": ("text", "of the reason"),
    "detail": ("text", "what exactly"),
    "stage": ("text", "intake, decode, engine, finish, review"),
    "path": ("text", "below the drop folder"),
    "folder": ("text", "name of the drop folder"),
    "job": ("count", "number of the job in the ledger"),
    "attempts": ("count", ""),
    "first_seen": ("time", ""),
    "time": ("time", "of the rejection"),
    "size": ("count", "bytes"),
    "sha256": ("digest or null", "null when the file is large or cannot be read"),
    "files?": ("texts", "of a set that was rejected in review: paths below the failed folder"),
    "version": ("table of counts", "of the file: inode, size, mtime_ns"),
    "rmbgd": ("text", "version"),
    "fingerprint?": ("text", "in a fleet: of the version of the input, SIZE-MTIME_NS"),
    "recipe?": ("text", "in a fleet: name"),
}
EVALUATION = {
    "rmbgd": ("text", "version"),
    "predictions": ("text", "folder or file"),
    "truth": ("text", "folder or file"),
    "dataset": ("text", "name of the test set"),
    "model": ("text or null", "that made the predictions, where --model names it"),
    "overlap": ("texts", "data sets that the model was trained on and that may hold images of the test set"),
    "without_truth": ("texts", "predictions that no truth has the name of"),
    "resamples": ("count", "of the images, for the intervals"),
}
EVALUATED_GROUP = {
    "category": ("text or null", "null: all images"),
    "images": ("count", "that were compared"),
}
ESTIMATE = {
    "mean": ("number", "over the images that have the figure"),
    "low": ("number or null", "of the 95 % interval; null with fewer than two images"),
    "high": ("number or null", "likewise"),
    "images": ("count", "that have the figure"),
}
EVALUATED_IMAGE = {
    "name": ("text", "path of the truth without suffix, below its folder"),
    "truth": ("text", "path of the file"),
    "prediction": ("text or null", "path of the file; null where there is none"),
    "category": ("text", "empty where it has none"),
    "width": ("count", "px; 0 where it was not compared"),
    "height": ("count", "px; 0 where it was not compared"),
    "reason": (
        "text or null",
        "why it was not compared: missing_prediction, size_differs, no_mask, unreadable, or a reason of rejection",
    ),
    "detail": ("text or null", "what exactly"),
    "figures": ("table of numbers", "those that this image has; docs/evaluation.md says what each means"),
}


def _table(keys: Mapping[str, tuple[str, str]]) -> Schema:
    properties = {}
    for key, (kind, meaning) in keys.items():
        properties[key.removesuffix("?")] = TYPES[kind] | ({"description": meaning} if meaning else {})
    return {
        "type": "object",
        "properties": properties,
        "required": [key for key in keys if not key.endswith("?")],
    }


def type_of(event: str, key: str) -> str:
    """A name of TYPES. Raises LookupError for a key of an event that KEYS lacks."""
    name = key.removesuffix("?")
    found = KEYS.get(f"{event}.{name}") or KEYS.get(name)
    if found is None:
        raise LookupError(f"{event}: say in KEYS of tools/schema.py what type the key '{name}' has")
    return found


def _keys_of(event: str) -> dict[str, tuple[str, str]]:
    return {key: (type_of(event, key), meaning) for key, meaning in EVENTS[event].keys.items()}


def events() -> Schema:
    definitions = {}
    for name, kind in EVENTS.items():
        definition = _table({key: (KEYS[key], "") for key in ENVELOPE} | _keys_of(name))
        definition["properties"]["event"] = {"const": name}
        definitions[name] = {"description": kind.meaning} | definition
    return {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in definitions], "$defs": definitions}


def status() -> Schema:
    schema = _table(STATUS)
    schema["properties"]["health"] = {"description": "as in the event of that name"} | _table(_keys_of("health"))
    schema["required"].append("health")
    return schema


def evaluation() -> Schema:
    group, schema = _table(EVALUATED_GROUP), _table(EVALUATION)
    group["properties"]["figures"] = {"type": "object", "additionalProperties": _table(ESTIMATE)}
    schema["properties"]["groups"] = {"type": "array", "items": group}
    schema["properties"]["images"] = {"type": "array", "items": _table(EVALUATED_IMAGE)}
    group["required"].append("figures")
    schema["required"] += ["groups", "images"]
    schema["properties"]["risk"] = _risk()
    return schema


def _risk() -> Schema:
    number, count = TYPES["number"], TYPES["count"]
    bound = TYPES["number or null"]
    reviewed = {"share": number, "images": count, "found": number, "low": bound, "high": bound}
    return {
        "type": "object",
        "description": "with --risk: of the failures, the share found in the lowest scores; docs/confidence.md",
        "properties": {
            "images": count,
            "failures": count,
            "reviewed": {
                "type": "array",
                "items": {"type": "object", "properties": reviewed, "required": list(reviewed)},
            },
            "aurc": number,
            "ideal": number,
        },
        "required": ["images", "failures", "reviewed", "aurc", "ideal"],
    }


DOCUMENTS: dict[str, tuple[str, Callable[[], Schema]]] = {
    "event": ("One event of rmbgd: a line of its log", events),
    "status": ("status.json in rmbgd's runtime directory", status),
    "cutout": ("<output>.json beside a cutout of rmbgd", lambda: _table(CUTOUT)),
    "evaluation": ("What `rmbgd eval --json` prints", evaluation),
    "failure": ("<name>.error.json beside an image that rmbgd rejected", lambda: _table(FAILURE)),
}


def document(name: str) -> Schema:
    title, make = DOCUMENTS[name]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **make()}


def text(name: str) -> str:
    return json.dumps(document(name), indent=1, ensure_ascii=False) + "\n"


def closed(schema: Any) -> Any:
    """The same schema, which admits no key that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    sealed = {key: closed(value) for key, value in schema.items()}
    return ({"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}) | sealed
