"""Line charts over time as SVG, to see whether a value grows."""

from html import escape

WIDTH, HEIGHT, LEFT, TOP = 720, 200, 70, 30


def chart(title, unit, series, top):
    """One chart at a vertical offset; series are (label, color, [(seconds, value)])."""
    values = [value for _, _, points in series for _, value in points]
    longest = max((seconds for _, _, points in series for seconds, _ in points), default=1) or 1
    most = (max(values, default=1) or 1) * 1.1
    inner, tall = WIDTH - LEFT - 20, HEIGHT - TOP - 30

    def place(seconds, value):
        return f"{LEFT + seconds / longest * inner:.1f},{top + TOP + tall - value / most * tall:.1f}"

    parts = [f'<text x="{LEFT}" y="{top + 18}" class="title">{escape(title)}</text>']
    for step in range(5):
        value = most * step / 4
        y = top + TOP + tall - tall * step / 4
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + inner}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="axis" text-anchor="end">{value:.3g} {unit}</text>')
    for step in range(5):
        seconds = longest * step / 4
        x = LEFT + inner * step / 4
        at = f'x="{x:.1f}" y="{top + HEIGHT - 10}"'
        parts.append(f'<text {at} class="axis" text-anchor="middle">{seconds / 60:.1f} min</text>')
    for number, (label, colour, points) in enumerate(series):
        line = " ".join(place(*point) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        x = LEFT + inner - 110 * (len(series) - number)
        parts.append(f'<text x="{x}" y="{top + 18}" class="axis" fill="{colour}">— {escape(label)}</text>')
    return "\n".join(parts)


def page(charts):
    """All charts, one below another; each is (title, unit, series)."""
    style = (
        "text{font-family:sans-serif}.title{font-size:14px}.axis{font-size:11px}.grid{stroke:#ddd;stroke-width:1}"
        "rect{fill:#fff}"
    )
    body = "\n".join(chart(*plot, number * HEIGHT) for number, plot in enumerate(charts))
    tall = HEIGHT * len(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" width="{WIDTH}" height="{tall}">'
        f"<style>{style}</style><rect width='100%' height='100%'/>\n{body}\n</svg>\n"
    )
