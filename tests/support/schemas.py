"""What the service writes, checked against docs/schema, where no key may stand that the schema lacks."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from tools import schema


@cache
def validator(name: str, event: str = "") -> Draft202012Validator:
    document = schema.closed(schema.document(name))
    if event:
        document = {"$ref": f"#/$defs/{event}", "$defs": {event: document["$defs"][event]}}
    return Draft202012Validator(document)


def problems(name: str, document: Any, event: str = "") -> list[str]:
    found = validator(name, event).iter_errors(document)
    return [f"{event or name}: {each.json_path}: {each.message}" for each in found]


def problems_of_events(events: list[dict[str, Any]], most: int = 20) -> list[str]:
    """Of the first `most` of each kind: the others are made by the same lines."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in events:
        kinds.setdefault(each["event"], []).append(each)
    return [line for event, some in kinds.items() for each in some[:most] for line in problems("event", each, event)]
