"""The command line of every campaign: legs with a seed each, audited one by one, counted in a file, resumable.

A leg has folders, a service and an audit of its own, so nothing of one is needed for the next. What is done stands in
the file --out: started again with the same arguments, a campaign does the legs that are missing there. A leg whose
audit found something is reported, and done again the next time. To be run in the checkout: campaigns use the harness of
the tests. Each prints a table, then one JSON line; exit status 1 for a finding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.support.mounts import memory_folder
from tools.tables import values

Leg = Callable[..., dict[str, Any]]  # (empty folder, faults, seed) -> counts; raises AssertionError
Shown = Callable[[str, Mapping[str, Any]], Table]


def main(
    name: str,
    leg: Leg,
    *,
    about: str,
    unit: str,
    count: int,
    each: int,
    shown: Shown = values,
    **choices: Sequence[str],
) -> int:
    """`count` faults of that `unit` by default, `each` of them a leg. The exit status.

    `choices`: further options of a leg, whose first value is the default. A leg may count what it found as `findings`,
    where its counts are worth having all the same.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{unit}", dest="count", type=int, default=count, help=f"in all (default: {count:,})")
    parser.add_argument("--each", type=int, default=each, help=f"{unit} of a leg (default: {each:,})")
    parser.add_argument("--seed", type=int, default=1, help="of the first leg (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON; a campaign that it tells of is continued")
    for option, words in choices.items():
        parser.add_argument(f"--{option}", choices=words, default=words[0], help=f"(default: {words[0]})")
    given = parser.parse_args()
    chosen = {option: getattr(given, option) for option in choices}
    head = {"campaign": name, "seed": given.seed, unit: given.count, "each": given.each} | chosen
    legs = known_legs(given.out, head)
    for number, first in enumerate(range(0, given.count, given.each)):
        seed, began = given.seed + number, time.monotonic()
        if str(seed) in legs:
            continue
        with (
            tempfile.TemporaryDirectory(prefix=f"rmbgd-{name}-") as fallback,
            memory_folder(Path(fallback)) as base,
        ):
            try:
                found = leg(base / "leg", min(given.each, given.count - first), seed, **chosen)
            except AssertionError as error:
                print(json.dumps({"seed": seed, "found": str(error)[-8000:]}))
                return 1
        legs[str(seed)] = found | {"seconds": round(time.monotonic() - began, 1)}
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            part = given.out.with_suffix(".part")
            part.write_text(json.dumps({**head, "total": total(legs), "legs": legs}, indent=1))
            part.replace(given.out)
    Console().print(shown(name.replace("_", " "), total(legs)))
    print(json.dumps(total(legs)))
    return int(bool(total(legs).get("findings")))


def known_legs(path: Path | None, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By seed, of the file where one is named. Raises SystemExit for a file of another campaign."""
    if path is None or not path.exists():
        return {}
    known = json.loads(path.read_text())
    legs: dict[str, dict[str, Any]] = known.pop("legs")
    del known["total"]
    if known != head:
        raise SystemExit(f"{path} is of another campaign ({known}); name another file, or remove it")
    return {seed: leg for seed, leg in legs.items() if not leg.get("findings")}


def total(legs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts and seconds of all legs; what cannot be added stands with its leg only."""
    return reduce(_sum, legs.values(), {"legs": len(legs)})


def _sum(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(left)
    for key, value in right.items():
        if isinstance(value, Mapping):
            found[key] = _sum(found.get(key, {}), value)
        elif isinstance(value, int) or key == "seconds":
            found[key] = round(found.get(key, 0) + value, 1)
    return found
