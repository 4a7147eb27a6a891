"""Print the report as plain text, at most a hundred columns wide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rmbgd.mtbf.logs import counted
from rmbgd.mtbf.machine import FURTHER
from rmbgd.mtbf.report import Estimate, MtbfReport
from rmbgd.mtbf.timeline import State, TripOutcome, stamp
from rmbgd.wording import duration, printable

REASONS_SHOWN = 5
FAILURES_SHOWN = 20
WIDTH = 22  # of the labels

TREND_NOTE = "* failures there come more, or less, often with time: a bound for a constant rate does not fit"

STATE_WORDS = {
    State.UP: "in service", State.DOWN: "down", State.PLANNED: "stopped on purpose",
    State.UNOBSERVED: "not observed", State.POWER_LOSS: "without power",
}  # fmt: skip


def render(report: MtbfReport) -> str:
    title = f"rmbgd mtbf: {printable(report.name)}"
    if report.window is None:
        lines = [title, "", "No run of the service is in these logs: there is nothing to count."]
    else:
        lines = [f"{title}, {stamp(report.window[0])} to {stamp(report.window[1])}", ""]
        lines += [*_failures(report), "", *_work(report), *_reasons(report), *_table(report), *_list(report)]
    if report.notes:
        lines += ["", "what the logs do not say, and how it was counted"]
    for name, note in report.notes:
        lines.append(f"  {printable(name)}: {printable(note)}" if len(report.machines) > 1 else f"  {printable(note)}")
    return "\n".join(lines) + "\n"


def _row(label: str, text: str) -> str:
    return f"{label:<{WIDTH}}{text}"


def _failures(one: MtbfReport) -> Iterator[str]:
    yield _row("operating time", f"{exact(one.hours)} h in service")
    for kind in (State.PLANNED, State.DOWN, State.POWER_LOSS, State.UNOBSERVED):
        if seconds := one.seconds(kind):
            yield _row("", f"{duration(seconds)} {STATE_WORDS[kind]}")
    yield ""
    failures = len(one.failures)
    yield _row("failures", str(failures))
    yield from _mean("MTBF", one.mtbf)
    if one.claimed:
        claim, confidence, needed = one.claimed
        sure = "less than 0.001 %" if confidence < 0.00001 else share(confidence)
        yield _row(f"claim of {claim:,g} h", f"holds with {sure} confidence")
        device_hours = f"{rounded(needed)} device-hours"
        yield _row("", f"{percent(one.confidence)} would take {device_hours} with {counted(failures, 'failure')}")
    if one.mttr is not None:
        unfinished = failures - len(one.down)
        more = f"; {unfinished} not over yet" if unfinished else ""
        yield _row("mean time to restore", f"{rounded(one.mttr)} s over {counted(len(one.down), 'outage')}{more}")
    if one.availability is None:
        yield _row("availability", "no outage seen: a figure of 1 would say more than is known")
    else:
        lost = f"{rounded(one.down_minutes_a_year, 2)} minutes down a year"
        yield _row("availability", f"{share(one.availability, 2)}, {lost}")
    if one.full_disk[1]:
        told = f"{duration(one.full_disk[0])} over {counted(one.full_disk[1], 'incident')}: neither failure nor down"
        yield _row("full disk", told)
    if one.paused_hours:
        yield _row("paused", f"{one.paused_hours:,.4f} h of it by an operator: no failure")
    if one.failed_starts:
        yield _row("failed starts", str(one.failed_starts))


def _mean(label: str, found: Estimate) -> Iterator[str]:
    """Never a point without its bound; no point where there is a trend."""
    lower, upper = found.interval
    bound = f"at least {rounded(found.bound)} h at {percent(found.confidence)} confidence"
    if found.failures == 0:
        yield _row(label, f"{bound}; no failure, so no estimate")
    elif found.doubtful:
        direction = "more" if (found.trend or 0) > 0 else "less"
        yield _row(label, f"no single number: they come {direction} often with time (Laplace U = {found.trend:+.2f})")
        yield _row("", f"were the rate constant: {bound}")
    else:
        yield _row(label, f"{rounded(found.point or 0)} h, {bound}")
        yield _row("", f"two-sided {percent(found.confidence)}: {rounded(lower)} h to {rounded(upper)} h")


def _work(one: MtbfReport) -> Iterator[str]:
    rejected, postponed = (one.count("outcomes")[outcome] for outcome in ("failed", "postponed"))
    yield _row("images", f"{one.done:,} published, {rejected:,} rejected, {postponed:,} put back")
    if one.further:
        yield _row("published again", marked(one.further))
    if one.per_million:
        point, upper = one.per_million
        bound = f"at most {rounded(upper)} at {percent(one.confidence)} confidence"
        yield _row("failures per million", bound if point is None else f"{rounded(point)}, {bound}")
    devices = one.count("devices")
    if len(devices) > 1:
        shares = (f"{printable(name)} {100 * count / devices.total():.1f} %" for name, count in devices.most_common())
        yield _row("computed on", ", ".join(shares))
    if times := one.stage_times().get("total"):
        low, middle, high = times
        yield _row("claim to outcome", f"median {middle:,.0f} ms; 5 to 95 %: {low:,.0f} to {high:,.0f} ms")
    if not one.trips:
        return
    words = {
        TripOutcome.AVOIDED: "avoided an outage", TripOutcome.IDLE: "with nothing to do",
        TripOutcome.BROKEN: "did not keep the service whole", TripOutcome.OPEN: "not back by the end of the run",
    }  # fmt: skip
    parts = [f"{one.outcomes[outcome]} {word}" for outcome, word in words.items() if one.outcomes[outcome]]
    yield _row("failovers", f"{len(one.trips)}, {duration(one.away)} away: {', '.join(parts)}")
    if one.coverage:
        avoided, tried, lower = one.coverage
        least = f"at least {share(lower)} at {percent(one.confidence)} confidence"
        yield _row("failover coverage", f"{avoided} of {tried}: {least}")
    yield from _mean("between failovers", one.between_failovers)


def marked(further: Mapping[str, int]) -> str:
    return ", ".join(f"{further[mark]:,} {mark}" for mark in FURTHER if further[mark])


def _reasons(one: MtbfReport) -> Iterator[str]:
    for name, table in one.reasons.items():
        if not table:
            continue
        yield from ("", f"{name}, by reason")
        yield from (f"  {count:>8,}  {printable(reason)}" for reason, count in table.most_common(REASONS_SHOWN))
        if rest := sum(count for _, count in table.most_common()[REASONS_SHOWN:]):
            yield f"  {rest:>8,}  other"


def _table(report: MtbfReport) -> Iterator[str]:
    if len(report.machines) == 1:
        return
    width = min(max(len("machine"), *(len(printable(one.name)) for one in report.each)), 30)
    bound = f"MTBF >= ({percent(report.confidence)})"
    yield ""
    yield f"{'machine':<{width}}  {'hours':>12}  {'failures':>8}  {bound:>16}  {'failovers':>9}  {'images':>11}"
    for one in report.each:
        bound = f"{rounded(one.mtbf.bound)} h" + (" *" if one.mtbf.doubtful else "")
        row = f"{printable(one.name)[:width]:<{width}}  {exact(one.hours):>12}  {len(one.failures):>8}  {bound:>16}"
        yield f"{row}  {len(one.trips):>9}  {one.images:>11,}"
    if any(one.mtbf.doubtful for one in report.each):
        yield TREND_NOTE


def _list(one: MtbfReport) -> Iterator[str]:
    if one.failures:
        shown = "failures" if len(one.failures) <= FAILURES_SHOWN else f"the last {FAILURES_SHOWN} failures"
        yield from ("", shown)
    for machine, failure in one.failures[-FAILURES_SHOWN:]:
        down = "not back by the end of the log" if failure.down is None else f"down {duration(failure.down)}"
        detail = f" ({printable(failure.detail)})" if failure.detail else ""
        yield f"  {stamp(failure.at)}  {printable(machine.name)}  {printable(failure.cause)}, {down}{detail}"


def percent(confidence: float) -> str:
    return f"{100 * confidence:g} %"


def rounded(value: float, digits: int = 3) -> str:
    """A derived figure: few events carry no more digits than three. 3,120, 155, 2.6."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def exact(hours: float) -> str:
    """What was counted keeps its whole hours: 14,415, 155.4, 1.25."""
    return rounded(hours, max(4, len(f"{hours:.0f}")))


def share(value: float, digits: int = 3) -> str:
    """As percent, with `digits` of what is missing to 0 or to 100 %: never 100 for a little less."""
    missing = 100 * min(value, 1 - value)
    if missing <= 0:
        return f"{100 * value:g} %"
    return f"{100 * value:.{max(digits - 1 - math.floor(math.log10(missing)), 0)}f} %"
