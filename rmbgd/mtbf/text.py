"""The report for people, as plain text of at most a hundred columns. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rmbgd.mtbf.machine import Machine
from rmbgd.mtbf.report import Estimate, Report, Summary
from rmbgd.mtbf.timeline import Kind, Outcome, stamp

REASONS_SHOWN = 5
FAILURES_SHOWN = 20
WIDTH = 22  # of the labels


def render(report: Report) -> str:
    total = report.total
    lines = [_title(total, len(report.machines))]
    if total.window is None:
        lines += ["", "No run of the service is in these logs: there is nothing to count."]
        return "\n".join([*lines, *_notes(report.machines)]) + "\n"
    lines += ["", *_time(total), "", *_failures(total), "", *_work(total)]
    lines += _reasons(total)
    if len(report.machines) > 1:
        lines += ["", *_table(report.each)]
    lines += _list(total)
    return "\n".join([*lines, *_notes(report.machines)]) + "\n"


def _title(total: Summary, machines: int) -> str:
    who = total.machines[0].name if machines == 1 else f"{machines} machines"
    if total.window is None:
        return f"rmbgd mtbf: {plain(who)}"
    return f"rmbgd mtbf: {plain(who)}, {stamp(total.window[0])} to {stamp(total.window[1])}"


def _row(label: str, text: str) -> str:
    return f"{label:<{WIDTH}}{text}"


def _time(one: Summary) -> Iterator[str]:
    yield _row("operating time", f"{one.hours:,.4f} h in service")
    others = [
        (one.seconds(Kind.PLANNED), "stopped on purpose"),
        (one.seconds(Kind.DOWN), "down"),
        (one.seconds(Kind.POWER_LOSS), "without power"),
        (one.seconds(Kind.UNOBSERVED), "not observed"),
    ]
    for seconds, word in others:
        if seconds:
            yield _row("", f"{duration(seconds)} {word}")


def _failures(one: Summary) -> Iterator[str]:
    failures = one.failures
    percent = f"{100 * one.confidence:g} %"
    yield _row("failures", str(len(failures)))
    yield from _mean("MTBF", one.mtbf)
    if one.claimed:
        claim, confidence, needed = one.claimed
        sure = "less than 0.001 %" if confidence < 0.00001 else f"{100 * confidence:.3f} %"
        yield _row(f"claim of {claim:,g} h", f"holds with {sure} confidence")
        said = f"{len(failures)} failure{'s' * (len(failures) != 1)}" if failures else "no failure"
        yield _row("", f"{percent} would take {needed:,.1f} device-hours with {said}")
    if one.mttr is not None:
        unfinished = len(failures) - len(one.down)
        more = f"; {unfinished} not over yet" if unfinished else ""
        yield _row(
            "mean time to restore", f"{one.mttr:,.1f} s over {len(one.down)} outage{'s' * (len(one.down) != 1)}{more}"
        )
    if one.availability is not None:
        minutes = (1 - one.availability) * 365 * 24 * 60
        yield _row("availability", f"{one.availability:.10f}, {minutes:,.2f} minutes down a year")
    else:
        yield _row("availability", "no outage seen: a figure of 1 would say more than is known")
    starts = sum(machine.timeline.failed_starts for machine in one.machines)
    if starts:
        yield _row("failed starts", str(starts))


def _mean(label: str, found: Estimate) -> Iterator[str]:
    """Never a point without its bound; no point where there is a trend."""
    percent = f"{100 * found.confidence:g} %"
    lower, upper = found.interval
    if found.failures == 0:
        yield _row(label, f"at least {found.bound:,.3f} h at {percent} confidence; no failure, so no estimate")
        return
    if found.doubtful:
        direction = "more" if (found.trend or 0) > 0 else "less"
        yield _row(label, f"no single number: they come {direction} often with time (Laplace U = {found.trend:+.3f})")
        yield _row("", f"were the rate constant: at least {found.bound:,.3f} h at {percent} confidence")
        return
    yield _row(label, f"{found.point:,.3f} h, at least {found.bound:,.3f} h at {percent} confidence")
    end = f"{upper:,.3f} h" if math.isfinite(upper) else "no end"
    yield _row("", f"two-sided {percent}: {lower:,.3f} h to {end}")


def _work(one: Summary) -> Iterator[str]:
    outcomes = one.count("outcomes")
    yield _row(
        "pictures",
        f"{outcomes['done']:,} published, {outcomes['failed']:,} refused, {outcomes['postponed']:,} put back",
    )
    if rate := one.per_million:
        point, upper = rate
        bound = f"at most {upper:,.2f} at {100 * one.confidence:g} % confidence"
        yield _row("failures per million", bound if point is None else f"{point:,.2f}, {bound}")
    devices = one.count("devices")
    if len(devices) > 1:
        total = sum(devices.values())
        shares = ", ".join(f"{plain(name)} {100 * count / total:.1f} %" for name, count in devices.most_common())
        yield _row("computed on", shares)
    if times := one.stage_times().get("total"):
        low, middle, high = times
        yield _row("claim to outcome", f"median {middle:,.0f} ms; 5 to 95 %: {low:,.0f} to {high:,.0f} ms")
    if one.trips:
        yield from _trips(one)


def _trips(one: Summary) -> Iterator[str]:
    words = {
        Outcome.AVOIDED: "avoided an outage", Outcome.IDLE: "with nothing to do",
        Outcome.BROKEN: "did not keep the service whole", Outcome.OPEN: "not back by the end of the run",
    }  # fmt: skip
    parts = [f"{one.outcomes[outcome]} {word}" for outcome, word in words.items() if one.outcomes[outcome]]
    away = sum(trip.until - trip.at for trip in one.trips)
    yield _row("failovers", f"{len(one.trips)}, {duration(away)} away: {', '.join(parts)}")
    if one.coverage:
        avoided, tried, lower = one.coverage
        share = f"at least {100 * lower:.2f} % at {100 * one.confidence:g} % confidence"
        yield _row("failover coverage", f"{avoided} of {tried}: {share}")
    yield from _mean("between failovers", one.between_failovers)


def _reasons(one: Summary) -> Iterator[str]:
    for name, table in one.reasons.items():
        if not table:
            continue
        yield ""
        yield f"{name}, by reason"
        for reason, count in table.most_common(REASONS_SHOWN):
            yield f"  {count:>8,}  {plain(reason)}"
        if len(table) > REASONS_SHOWN:
            rest = sum(count for _, count in table.most_common()[REASONS_SHOWN:])
            yield f"  {rest:>8,}  other"


def _table(each: list[Summary]) -> Iterator[str]:
    name = max(len(plain(one.name)) for one in each)
    name = min(max(name, len("machine")), 30)
    bound = f"MTBF >= ({100 * each[0].confidence:g} %)"
    head = f"{'machine':<{name}}  {'hours':>12}  {'failures':>8}  {bound:>16}"
    yield f"{head}  {'failovers':>9}  {'pictures':>11}"
    for one in each:
        shown = plain(one.name)[:name]
        bound = f"{one.mtbf.bound:,.1f} h" + ("?" if one.mtbf.doubtful else "")
        row = f"{shown:<{name}}  {one.hours:>12,.2f}  {len(one.failures):>8}  {bound:>16}"
        yield f"{row}  {len(one.trips):>9}  {one.images:>11,}"


def _list(one: Summary) -> Iterator[str]:
    failures = one.failures
    if not failures:
        return
    yield ""
    yield "failures" if len(failures) <= FAILURES_SHOWN else f"the last {FAILURES_SHOWN} failures"
    for machine, failure in failures[-FAILURES_SHOWN:]:
        down = "not back by the end of the log" if failure.down is None else f"down {duration(failure.down)}"
        detail = f" ({plain(failure.detail)})" if failure.detail else ""
        yield f"  {stamp(failure.at)}  {plain(machine.name)}  {plain(failure.cause)}, {down}{detail}"


def _notes(machines: list[Machine]) -> Iterator[str]:
    notes = [(machine.name, note) for machine in machines for note in machine.notes]
    if not notes:
        return
    yield ""
    yield "what the logs do not say, and how it was counted"
    for name, note in notes:
        who = f"{plain(name)}: " if len(machines) > 1 else ""
        yield f"  {who}{plain(note)}"


def duration(seconds: float) -> str:
    """2.6 s, 3 min 20 s, 5 h 10 min, 4 d 2 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 2 * 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def plain(text: str) -> str:
    """Logs hold what others wrote: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
