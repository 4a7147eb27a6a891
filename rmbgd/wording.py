"""POLICY: words for people: durations, names without control characters, the known word that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

VERDICTS = {"review": "waits for review", "empty": "no subject", "full": "fills the frame"}
"""Of an image that is not ok."""


def printable(text: str) -> str:
    """`text` with everything escaped that could steer a terminal: controls, turned writing, broken characters."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def duration(seconds: float) -> str:
    """0.13 s, 1.2 s, 45 s, 3 min 20 s, 10 min, 5 h 10 min, 4 d 2 h."""
    if seconds < 100:
        return f"{round(seconds, 3):.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    large, small, unit = (86_400, 3600, "d h") if whole >= 48 * 3600 else (3600, 60, "h min")
    if whole < 2 * 3600:
        large, small, unit = 60, 1, "min s"
    first, second = unit.split()
    return f"{whole // large} {first}" + (f" {rest} {second}" if (rest := whole % large // small) else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'status'?`, or nothing where no known word is near."""
    import difflib  # only a mistake needs it

    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else ""


def computing(facts: Mapping[str, object]) -> str:
    """What computes a network, in which precision and why: facts of a model in `engine.started`."""
    runtime = f"{facts['runtime']} {facts.get('runtime_version', '')}".strip()
    because = facts.get("precision_because")
    return f"in {runtime}, {facts['precision']}" + (f": {because}" if because else "")
