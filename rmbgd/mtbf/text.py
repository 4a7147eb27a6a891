"""Print the report as plain text, at most a hundred columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from rmbgd.mtbf.logs import counted
from rmbgd.mtbf.report import Estimate, MtbfReport
from rmbgd.mtbf.timeline import State, TripOutcome, stamp

REASONS_SHOWN = 5
FAILURES_SHOWN = 20
WIDTH = 22  # of the labels

STATE_WORDS = {
    State.UP: "in service", State.DOWN: "down", State.PLANNED: "stopped on purpose",
    State.UNOBSERVED: "not observed", State.POWER_LOSS: "without power",
}  # fmt: skip


def render(report: MtbfReport) -> str:
    title = f"rmbgd mtbf: {plain(report.name)}"
    if report.window is None:
        lines = [title, "", "No run of the service is in these logs: there is nothing to count."]
    else:
        lines = [f"{title}, {stamp(report.window[0])} to {stamp(report.window[1])}", ""]
        lines += [*_failures(report), "", *_work(report), *_reasons(report), *_table(report), *_list(report)]
    if report.notes:
        lines += ["", "what the logs do not say, and how it was counted"]
    for name, note in report.notes:
        lines.append(f"  {plain(name)}: {plain(note)}" if len(report.machines) > 1 else f"  {plain(note)}")
    return "\n".join(lines) + "\n"


def _row(label: str, text: str) -> str:
    return f"{label:<{WIDTH}}{text}"


def _failures(one: MtbfReport) -> Iterator[str]:
    yield _row("operating time", f"{one.hours:,.4f} h in service")
    for kind in (State.PLANNED, State.DOWN, State.POWER_LOSS, State.UNOBSERVED):
        if seconds := one.seconds(kind):
            yield _row("", f"{duration(seconds)} {STATE_WORDS[kind]}")
    yield ""
    failures = len(one.failures)
    yield _row("failures", str(failures))
    yield from _mean("MTBF", one.mtbf)
    if one.claimed:
        claim, confidence, needed = one.claimed
        sure = "less than 0.001 %" if confidence < 0.00001 else f"{100 * confidence:.3f} %"
        yield _row(f"claim of {claim:,g} h", f"holds with {sure} confidence")
        device_hours = f"{needed:,.1f} device-hours"
        yield _row("", f"{percent(one.confidence)} would take {device_hours} with {counted(failures, 'failure')}")
    if one.mttr is not None:
        unfinished = failures - len(one.down)
        more = f"; {unfinished} not over yet" if unfinished else ""
        yield _row("mean time to restore", f"{one.mttr:,.1f} s over {counted(len(one.down), 'outage')}{more}")
    if one.availability is None:
        yield _row("availability", "no outage seen: a figure of 1 would say more than is known")
    else:
        yield _row("availability", f"{one.availability:.10f}, {one.down_minutes_a_year:,.2f} minutes down a year")
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
    bound = f"at least {found.bound:,.3f} h at {percent(found.confidence)} confidence"
    if found.failures == 0:
        yield _row(label, f"{bound}; no failure, so no estimate")
    elif found.doubtful:
        direction = "more" if (found.trend or 0) > 0 else "less"
        yield _row(label, f"no single number: they come {direction} often with time (Laplace U = {found.trend:+.3f})")
        yield _row("", f"were the rate constant: {bound}")
    else:
        yield _row(label, f"{found.point:,.3f} h, {bound}")
        yield _row("", f"two-sided {percent(found.confidence)}: {lower:,.3f} h to {upper:,.3f} h")


def _work(one: MtbfReport) -> Iterator[str]:
    done, refused, postponed = (one.count("outcomes")[outcome] for outcome in ("done", "failed", "postponed"))
    yield _row("images", f"{done:,} published, {refused:,} refused, {postponed:,} put back")
    if one.per_million:
        point, upper = one.per_million
        bound = f"at most {upper:,.2f} at {percent(one.confidence)} confidence"
        yield _row("failures per million", bound if point is None else f"{point:,.2f}, {bound}")
    devices = one.count("devices")
    if len(devices) > 1:
        shares = (f"{plain(name)} {100 * count / devices.total():.1f} %" for name, count in devices.most_common())
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
        share = f"at least {100 * lower:.2f} % at {percent(one.confidence)} confidence"
        yield _row("failover coverage", f"{avoided} of {tried}: {share}")
    yield from _mean("between failovers", one.between_failovers)


def _reasons(one: MtbfReport) -> Iterator[str]:
    for name, table in one.reasons.items():
        if not table:
            continue
        yield from ("", f"{name}, by reason")
        yield from (f"  {count:>8,}  {plain(reason)}" for reason, count in table.most_common(REASONS_SHOWN))
        if rest := sum(count for _, count in table.most_common()[REASONS_SHOWN:]):
            yield f"  {rest:>8,}  other"


def _table(report: MtbfReport) -> Iterator[str]:
    if len(report.machines) == 1:
        return
    width = min(max(len("machine"), *(len(plain(one.name)) for one in report.each)), 30)
    bound = f"MTBF >= ({percent(report.confidence)})"
    yield ""
    yield f"{'machine':<{width}}  {'hours':>12}  {'failures':>8}  {bound:>16}  {'failovers':>9}  {'images':>11}"
    for one in report.each:
        bound = f"{one.mtbf.bound:,.1f} h" + ("?" if one.mtbf.doubtful else "")
        row = f"{plain(one.name)[:width]:<{width}}  {one.hours:>12,.2f}  {len(one.failures):>8}  {bound:>16}"
        yield f"{row}  {len(one.trips):>9}  {one.images:>11,}"


def _list(one: MtbfReport) -> Iterator[str]:
    if one.failures:
        shown = "failures" if len(one.failures) <= FAILURES_SHOWN else f"the last {FAILURES_SHOWN} failures"
        yield from ("", shown)
    for machine, failure in one.failures[-FAILURES_SHOWN:]:
        down = "not back by the end of the log" if failure.down is None else f"down {duration(failure.down)}"
        detail = f" ({plain(failure.detail)})" if failure.detail else ""
        yield f"  {stamp(failure.at)}  {plain(machine.name)}  {plain(failure.cause)}, {down}{detail}"


def percent(share: float) -> str:
    return f"{100 * share:g} %"


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
