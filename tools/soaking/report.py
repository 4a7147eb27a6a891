"""A soak's result as a page in Markdown."""

from __future__ import annotations

import io
from typing import Any


def report(result: dict[str, Any]) -> str:
    """Markdown."""
    out = io.StringIO()
    print(f"# Soak of {result['seconds']:g} s\n", file=out)
    print(
        f"{result['done']} images done, {result['refused']} refused, {result['lost']} lost, "
        f"in {result['lives']} lives.",
        file=out,
    )
    print(
        f"{result['parts_of_the_log']} parts of the log hold an event for every image, {result['told_again']} of "
        f"them twice, as they say. {result['days_of_the_ledger']} days by the ledger's clock; it remembers "
        f"{result['remembered']} images.",
        file=out,
    )
    print("Faults: " + ", ".join(f"{name} {count}" for name, count in result["faults"].items()) + ".\n", file=out)
    print(
        "| quantity | slope per hour | 95 % bounds | per 1,000 images | 95 % bounds | last life: from, to, most |\n"
        "|---|---|---|---|---|---|",
        file=out,
    )
    for name, hourly in result["per_hour"].items():
        per_image = result["per_1000_images"].get(name, [None] * 3)
        numbers = ["unknown" if each is None else f"{each:,.1f}" for each in (*hourly, *per_image)]
        cells = "{} | {} to {} | {} | {} to {}".format(*numbers)
        levels = ", ".join(f"{level:,.0f}" for level in result["levels"][name])
        print(f"| {name} | {cells} | {levels} |", file=out)
    verdict = "memory grows" if result["grows"] else "no growth shown" if result["judged"] else "too short to be judged"
    print(f"\nMemory, the ledger and shared memory in bytes. Verdict on memory: {verdict}.", file=out)
    return out.getvalue()
