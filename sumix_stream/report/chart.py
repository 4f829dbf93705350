"""Line charts as inline SVG: no script, no font, no colour of their own, so that a page can be light or dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 24
MOST_POINTS = 300  # of a line: more are drawn as means of equally many each
NUM_COLOURS = 8  # classes s0 ... s7; the page's style gives them their colours


class Series(NamedTuple):
    """A line: (x, y) points by x; what is not finite is left out. `last`: for the legend, else the last y."""

    name: str
    points: Sequence[tuple[float, float | None]]
    last: str | None = None


def line_chart(title: str, series: Sequence[Series], *, unit: str = "", log: bool = False, x_name: str = "step") -> str:
    """A <figure> with a legend that gives every line's last value.

    Args:
        unit: of y, for the caption.
        log: logarithmic y axis; what is not positive is left out.
    """
    series = [s._replace(points=_drawable(s.points, log)) for s in series]
    caption = f"<figcaption>{escape(title)}{f' <small>{escape(unit)}</small>' if unit else ''}</figcaption>"
    drawn = [s for s in series if s.points]
    if not drawn:
        return f'<figure class="chart">{caption}<p class="empty">nothing yet</p></figure>'
    lines = [thin(s.points) for s in drawn]
    x_low, x_high = _extent([x for line in lines for x, _ in line])
    scale = math.log10 if log else float
    y_low, y_high = _extent([scale(y) for line in lines for _, y in line], margin=0.04)

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low)

    def down(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - scale(y)) / (y_high - y_low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    ticks = [10.0**exponent for exponent in _log_ticks(y_low, y_high)] if log else _ticks(y_low, y_high)
    for value in ticks:
        y = down(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{figure(value)}</text>')
    for value in _ticks(x_low, x_high, most=5):
        x = min(across(value), WIDTH - 12)
        if x < LEFT + 12:  # the axis's name stands there
            continue
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{figure(value)}</text>')
    for number, line in enumerate(lines):
        colour = f"s{number % NUM_COLOURS}"
        path = "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in line)
        parts.append(f'<path class="line {colour}" d="M{path}"/>')
        if len(line) < 40:
            x, y = (across(line[-1][0]), down(line[-1][1])) if len(line) > 1 else (across(line[0][0]), down(line[0][1]))
            parts.append(f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
    parts.append(f'<text x="{LEFT - 5}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_name)}</text>')
    values = [escape(s.last or figure(s.points[-1][1])) for s in drawn]
    legend = "".join(
        f'<li><i class="key s{n % NUM_COLOURS}"></i>{escape(s.name)} <b>{value}</b></li>'
        for n, (s, value) in enumerate(zip(drawn, values, strict=True))
    )
    return f'<figure class="chart">{caption}{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points: means of groups of neighbours, at the x of each group's last."""
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def figure(value: float) -> str:
    """A number in four significant figures, as people write it."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}" if size < 1e4 else f"{value:.0f}"


def _drawable(points: Sequence[tuple[float, float | None]], log: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y) and (y > 0 or not log)]


def _extent(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        half = abs(low) / 10 or 0.5
        return low - half, high + half
    space = margin * (high - low)
    return low - space, high + space


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Exponents of the ticks: whole ones, or where fewer than two lie inside, evenly spaced ones."""
    whole = list(range(math.ceil(low), math.floor(high) + 1))
    if len(whole) >= 2:
        return whole[:: math.ceil(len(whole) / 6)]
    return [low + (high - low) * share for share in (0.1, 0.5, 0.9)]
