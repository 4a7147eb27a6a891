"""The report as one HTML page with plots: no network, no script, light and dark.

Computes nothing; every text from a log is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from rmbgd.mtbf import plots
from rmbgd.mtbf.look import COLOURS, STYLE
from rmbgd.mtbf.report import PERCENTS, Estimate, Report, Summary
from rmbgd.mtbf.text import duration
from rmbgd.mtbf.timeline import Kind, stamp
from rmbgd.mtbf.trips import Outcome

FAILURES_SHOWN = 200
REASONS_SHOWN = 8
SHORT = 0.05  # h


def render_page(report: Report) -> str:
    total = report.total
    body = list(_head(report, total))
    if total.window is None:
        body.append("<p>No run of the service is in these logs: there is nothing to count.</p>")
    else:
        body += [*_tiles(total), *_statements(total), *_bounds(total), *_plots(report, total)]
        body += [*_machines(report), *_failures(total), *_reasons(total)]
    body += _notes(report)
    body.append(f"<footer>rmbgd mtbf; {report.lines:,} lines read. Times are UTC.</footer>")
    body = [part.replace(" %", "\u00a0%") for part in body]  # a number stays with its sign
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Mean time between failures</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _head(report: Report, total: Summary) -> Iterator[str]:
    count = len(report.machines)
    who = escape(report.machines[0].name) if count == 1 else f"{count} machines"
    yield "<h1>Mean time between failures</h1>"
    if total.window is not None:
        yield f'<p class="sub">{who}, {stamp(total.window[0])} to {stamp(total.window[1])}</p>'
    else:
        yield f'<p class="sub">{who}</p>'


def _tile(name: str, value: str, *more: str) -> str:
    said = "<br>".join(escape(words) for words in more if words)
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="more">{said}</div></div>'
    )


def _tiles(one: Summary) -> Iterator[str]:
    percent = f"{100 * one.confidence:g} %"
    failures = one.failures
    yield '<div class="tiles">'
    yield _mean_tile("Mean time between failures", one.mtbf)
    planned, unseen = one.seconds(Kind.PLANNED), one.seconds(Kind.UNOBSERVED)
    yield _tile(
        "Operating time",
        _hours(one.hours, 1),
        f"{duration(planned)} stopped on purpose" if planned else "",
        f"{duration(unseen)} not observed" if unseen else "",
    )
    mttr = f"restored after {duration(one.mttr)} on average" if one.mttr is not None else ""
    yield _tile("Failures", str(len(failures)), mttr)
    if one.availability is None:
        yield _tile("Availability", "not yet known", "no outage was seen")
    else:
        minutes = (1 - one.availability) * 365 * 24 * 60
        yield _tile("Availability", f"{100 * one.availability:.5f} %", f"{minutes:,.1f} minutes down a year")
    if one.trips:
        covered = ""
        if one.coverage:
            avoided, tried, lower = one.coverage
            covered = f"{avoided} of {tried} kept the service whole: at least {100 * lower:.1f} % do, at {percent}"
        yield _tile("Failovers", str(len(one.trips)), covered or f"{one.outcomes[Outcome.IDLE]} with nothing to do")
    else:
        yield _tile("Failovers", "0", "no device was left")
    rate = one.per_million
    more = ""
    if rate:
        point, upper = rate
        bound = f"at most {upper:,.1f} at {percent}"
        more = f"failures per million: {bound if point is None else f'{point:,.1f}, {bound}'}"
    yield _tile("Pictures", f"{one.pictures:,}", more)
    yield "</div>"


def _mean_tile(name: str, found: Estimate) -> str:
    percent = f"{100 * found.confidence:g} %"
    if not found.failures:
        return _tile(name, f"≥ {_hours(found.bound, 1)}", f"at {percent} confidence; no failure, so no estimate")
    if found.doubtful:
        return _tile(name, "no single number", f"failures show a trend, U = {found.trend:+.2f}")
    lower, upper = found.interval
    end = _hours(upper, 0) if math.isfinite(upper) else "no end"
    return _tile(
        name,
        _hours(found.point or 0.0, 1),
        f"at least {_hours(found.bound, 1)} at {percent} confidence",
        f"two-sided {percent}: {_hours(lower, 0)} to {end}",
    )


def _statements(one: Summary) -> Iterator[str]:
    if one.mtbf.doubtful:
        more = "more" if (one.mtbf.trend or 0) > 0 else "less"
        yield (
            f'<p class="warn">Failures come {more} often as time goes by (Laplace U = {one.mtbf.trend:+.3f}, beyond '
            "±1.645): a constant rate does not fit, and one mean time would mislead. Bounds below assume one.</p>"
        )
    if one.claimed:
        claim, confidence, needed = one.claimed
        count = len(one.failures)
        with_so_many = f"{count} failure{'s' * (count != 1)}" if count else "no failure"
        yield (
            f'<p class="claim">That the mean time between failures is at least <b>{claim:,g} h</b> holds with '
            f"<b>{_percent(confidence)}</b> confidence. {100 * one.confidence:g} % would take {needed:,.0f} "
            f"device-hours with {with_so_many}.</p>"
        )


def _hours(value: float, digits: int) -> str:
    """Hours, but what would be no more than zeros of them in minutes and seconds."""
    return f"{value:,.{digits}f} h" if value >= SHORT else duration(value * 3600)


def _percent(share: float) -> str:
    return "less than 0.01 %" if share < 0.0001 else f"{100 * share:.2f} %"


def _bounds(one: Summary) -> Iterator[str]:
    shares = sorted({*PERCENTS, one.confidence})
    yield "<h2>Lower bounds</h2>"
    yield '<p class="hint">One-sided lower bounds, exact for failures at a constant rate watched for a given time.</p>'
    yield '<div class="scroll"><table><tr><th>confidence</th>'
    yield "".join(f'<th class="n">{100 * share:g} %</th>' for share in shares) + "</tr><tr><td>mean time ≥</td>"
    yield "".join(f'<td class="n">{_hours(one.mtbf.lower[share], 2)}</td>' for share in shares) + "</tr></table></div>"


def _legend(entries: dict[str, str]) -> str:
    items = "".join(
        f'<span><i style="background:var({COLOURS[style]})"></i>{escape(words)}</span>'
        for words, style in entries.items()
    )
    return f'<div class="legend">{items}</div>'


def _plots(report: Report, total: Summary) -> Iterator[str]:
    begin, end = plots.window_of(total)
    styles = plots.device_styles(report.machines)
    shown = {plots.KIND_WORDS[kind]: str(kind) for kind in Kind if total.seconds(kind)}
    if total.failures:
        shown.pop(plots.KIND_WORDS[Kind.DOWN], None)
        shown["▼ failure, and down since"] = "down"
    if total.trips:
        shown["work on another device"] = "away"
    yield "<h2>Operating time and failures</h2>"
    yield _legend(shown)
    yield f'<div class="plot">{plots.life(report.machines, begin, end)}</div>'
    left_out = len(report.machines) - plots.MACHINES_DRAWN
    if left_out > 0:
        yield f'<p class="hint">{left_out} more machines are in the table below.</p>'
    drawn = [(one, plots.temperature(one, begin, end, styles)) for one in report.machines[: plots.MACHINES_DRAWN]]
    if any(picture for _, picture in drawn):
        yield "<h2>Temperature and device in use</h2>"
        yield '<p class="hint">The hottest device at each heartbeat, where known; the strip is the device in use.</p>'
        yield _legend(styles)
        for machine, picture in drawn:
            if picture:
                yield f'<h3>{escape(machine.name)}</h3><div class="plot">{picture}</div>'
    if hourly := plots.pictures_per_hour(total, begin, end, styles):
        yield "<h2>Pictures an hour</h2>"
        refused = {"refused": "down"} if total.count("outcomes")["failed"] else {}
        yield _legend(styles | refused)
        yield f'<div class="plot">{hourly}</div>'
    if stages := plots.stage_times(total):
        yield "<h2>Time in each stage</h2>"
        yield '<p class="hint">Median, and the range from 5 to 95 % of published pictures; logarithmic.</p>'
        yield f'<div class="plot">{stages}</div>'
    if over_time := plots.latency(total, begin, end):
        yield "<h3>From claim to outcome</h3>"
        yield '<p class="hint">The line is the median, the bar reaches up to the 95 % mark; logarithmic.</p>'
        yield f'<div class="plot">{over_time}</div>'


def _machines(report: Report) -> Iterator[str]:
    if len(report.machines) < 2:
        return
    percent = f"{100 * report.confidence:g} %"
    yield "<h2>Machines</h2>"
    yield '<div class="scroll"><table><tr><th>machine</th><th class="n">in service</th><th class="n">failures</th>'
    yield f'<th class="n">mean time ≥ ({percent})</th><th class="n">failovers</th><th class="n">pictures</th>'
    yield '<th class="n">refused</th></tr>'
    for one in report.each:
        doubt = " ?" if one.mtbf.doubtful else ""
        yield (
            f'<tr><td>{escape(one.name)}</td><td class="n">{_hours(one.hours, 2)}</td>'
            f'<td class="n">{len(one.failures)}</td><td class="n">{_hours(one.mtbf.bound, 1)}{doubt}</td>'
            f'<td class="n">{len(one.trips)}</td><td class="n">{one.pictures:,}</td>'
            f'<td class="n">{one.count("outcomes")["failed"]:,}</td></tr>'
        )
    yield "</table></div>"


def _failures(one: Summary) -> Iterator[str]:
    failures = one.failures
    if not failures:
        return
    yield "<h2>Failures</h2>"
    if len(failures) > FAILURES_SHOWN:
        yield f'<p class="hint">The last {FAILURES_SHOWN} of {len(failures)}.</p>'
    yield '<div class="scroll"><table><tr><th>when</th><th>machine</th><th>cause</th><th class="n">down</th></tr>'
    for machine, failure in failures[-FAILURES_SHOWN:]:
        down = "not back" if failure.down is None else duration(failure.down)
        detail = f"<br><small>{escape(failure.detail)}</small>" if failure.detail else ""
        yield (
            f"<tr><td>{stamp(failure.at)}</td><td>{escape(machine.name)}</td>"
            f'<td class="wide">{escape(failure.cause)}{detail}</td><td class="n">{down}</td></tr>'
        )
    yield "</table></div>"


def _reasons(one: Summary) -> Iterator[str]:
    tables = {name: table for name, table in one.reasons.items() if table}
    if not tables:
        return
    yield '<h2>Reasons</h2><div class="columns">'
    for name, table in tables.items():
        yield f"<div><h3>{escape(name.capitalize())}</h3><table>"
        for reason, count in table.most_common(REASONS_SHOWN):
            yield f'<tr><td class="wide">{escape(reason)}</td><td class="n">{count:,}</td></tr>'
        rest = sum(count for _, count in table.most_common()[REASONS_SHOWN:])
        if rest:
            yield f'<tr><td>other</td><td class="n">{rest:,}</td></tr>'
        yield "</table></div>"
    yield "</div>"


def _notes(report: Report) -> Iterator[str]:
    notes = [(machine.name, note) for machine in report.machines for note in machine.notes]
    if not notes:
        return
    yield "<h2>What the logs do not say, and how it was counted</h2><ul>"
    for name, note in notes:
        who = f"<b>{escape(name)}</b>: " if len(report.machines) > 1 else ""
        yield f"<li>{who}{escape(note)}</li>"
    yield "</ul>"
