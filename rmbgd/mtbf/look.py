"""How the page looks, in light and dark. Values only."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1d2229; --muted: #667080; --rule: #e3e6eb;
  --up: #4c9f8a; --down: #c8343a; --planned: #b4bcc8; --power: #8b6fc0; --unknown: #e8c36a; --away: #dd8a2c;
  --d0: #3f78c2; --d1: #6a5bb5; --d2: #2f9aa8; --d3: #8aa53c; --d4: #b0568f; --d5: #7d8794; --cpu: #dd8a2c; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --card: #1c2026; --ink: #e4e7eb; --muted: #939dab; --rule: #2d333b;
  --up: #4ea58f; --down: #f0666b; --planned: #5a6472; --power: #a48ad8; --unknown: #c9a24a; --away: #eb9d45;
  --d0: #6ba0e6; --d1: #998be0; --d2: #55bcc9; --d3: #a9c45c; --d4: #d27fb3; --d5: #98a2b0; --cpu: #eb9d45; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 28px 72px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 44px 0 4px; font-weight: 650; }
h3 { font-size: 14px; margin: 18px 0 2px; font-weight: 600; }
p { margin: 4px 0 12px; max-width: 76ch; }
.sub, .hint, small { color: var(--muted); }
.hint { font-size: 13.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; margin: 24px 0 8px; }
.tile { background: var(--card); border-radius: 10px; padding: 14px 16px; }
.tile .name { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 24px; font-weight: 650; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.tile .more { font-size: 13px; color: var(--muted); font-variant-numeric: tabular-nums; }
.claim { border-left: 3px solid var(--d0); padding: 2px 14px; margin: 18px 0; }
.warn { border-left: 3px solid var(--down); padding: 2px 14px; margin: 18px 0; }
.plot { overflow-x: auto; } .plot svg { display: block; width: 100%; min-width: 720px; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
svg .tick { fill: var(--muted); font-size: 11.5px; } svg .bad { fill: var(--down); font-size: 11.5px; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .up { fill: var(--up); } svg .down { fill: var(--down); } svg .planned { fill: var(--planned); }
svg .power_loss { fill: var(--power); } svg .unobserved { fill: var(--unknown); }
svg .away { fill: var(--away); } svg .failure { fill: var(--down); }
svg .shade { fill: var(--away); fill-opacity: 0.18; }
svg .device0 { fill: var(--d0); } svg .device1 { fill: var(--d1); } svg .device2 { fill: var(--d2); }
svg .device3 { fill: var(--d3); } svg .device4 { fill: var(--d4); } svg .device5 { fill: var(--d5); }
svg .cpu { fill: var(--cpu); } svg .stage { fill: var(--d0); fill-opacity: 0.45; }
svg .total { fill: var(--up); fill-opacity: 0.6; } svg .median { stroke: var(--ink); stroke-width: 2; }
svg .curve { fill: none; stroke: var(--d0); stroke-width: 1.6; stroke-linejoin: round; }
svg .limit { stroke: var(--down); stroke-width: 1; stroke-dasharray: 4 4; }
svg .spread { fill: var(--d0); fill-opacity: 0.35; } svg .middle { fill: var(--d0); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--muted); margin: 4px 0 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px;
  vertical-align: -1px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; margin: 6px 0; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 13px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.n, th.n { text-align: right; } td.wide { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 4px 36px; }
ul { padding-left: 20px; margin: 6px 0; } li { margin: 3px 0; max-width: 90ch; }
footer { margin-top: 48px; color: var(--muted); font-size: 13px; }
@media print { main { max-width: none; } .plot svg { min-width: 0; } h2 { break-after: avoid; } }
"""

DEVICE_STYLES = 6  # colours for devices; further ones share the last

COLOURS = {
    "up": "--up", "down": "--down", "planned": "--planned", "power_loss": "--power", "unobserved": "--unknown",
    "away": "--away", "cpu": "--cpu", **{f"device{place}": f"--d{place}" for place in range(DEVICE_STYLES)},
}  # fmt: skip
"""The colour of each class that a legend may show."""
