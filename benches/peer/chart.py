#!/usr/bin/env python3
"""Draws the CPU time per request as a multiple of that of the minimum server.

    benches/peer/chart.py FIGURES.json > benches/peer/figures.svg          # what run.py wrote with --out
"""
import json
import statistics
import sys
from html import escape

WORKS = {"W1": "a task", "W2": "a page of 50", "W3": "nested, 10 × 10 × 5", "W4": "an update"}
NAMES = {"limit": "minimum", "asyncgraphql": "bare async-graphql", "fasttrack": "fasttrack"}
COLOURS = {"limit": "#8a8f98", "asyncgraphql": "#d08b3a", "fasttrack": "#2f7fd0"}
WIDTH, LEFT, BAR, GAP, TOP = 720, 150, 15, 16, 34
STYLE = ("text{font:12px sans-serif;fill:#57606a}.title{font-size:14px;font-weight:bold}"
         "@media (prefers-color-scheme:dark){text{fill:#adb5bd}}")


def total(rounds):
    return statistics.median(it["server_us"] + it["pg_us"] for it in rounds)


figures = json.load(open(sys.argv[1]))["http"]
peers = [name for name in NAMES if any(key.startswith(f"{name}/") for key in figures)]
micros = {(work, name): total(figures[f"{name}/{work}"])
          for work in WORKS for name in peers if f"{name}/{work}" in figures}
largest = max(value / micros[work, "limit"] for (work, _), value in micros.items())
scale = (WIDTH - LEFT - 130) / largest
parts, y = [], TOP
for number, name in enumerate(peers):
    x = LEFT + number * 160
    parts.append(f'<rect x="{x}" y="8" width="11" height="11" fill="{COLOURS[name]}"/>')
    parts.append(f'<text x="{x + 17}" y="18">{escape(NAMES[name])}</text>')
for work, title in WORKS.items():
    parts.append(f'<text x="{LEFT - 10}" y="{y + len(peers) * BAR / 2 + 4}" text-anchor="end">{escape(title)}</text>')
    for name in (name for name in peers if (work, name) in micros):
        share = micros[work, name] / micros[work, "limit"]
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{share * scale:.1f}" height="{BAR - 3}" fill="{COLOURS[name]}"/>')
        text = f"{micros[work, name]:,.0f} µs" + (f" · {share:.1f} ×" if name != "limit" else "")
        parts.append(f'<text x="{LEFT + share * scale + 6:.1f}" y="{y + BAR - 5}">{text}</text>')
        y += BAR
    y += GAP
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
      f'aria-label="CPU time per request, server and PostgreSQL"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>")
