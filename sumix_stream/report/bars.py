"""Histograms as inline SVG, in the style of `chart`."""

from collections.abc import Sequence
from html import escape

from sumix_stream.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, figure


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], *, unit: str = "", about: str = "") -> str:
    """A <figure> of bars, one for each of `counts` between two of `edges`, equally wide whatever their edges.

    Args:
        unit: of the edges, for the caption.
        about: a line below.
    """
    caption = f"<figcaption>{escape(title)}{f' <small>{escape(unit)}</small>' if unit else ''}</figcaption>"
    if not any(counts):
        return f'<figure class="chart">{caption}<p class="empty">nothing yet</p></figure>'
    first = next(n for n, count in enumerate(counts) if count)
    last = next(n for n in range(len(counts) - 1, -1, -1) if counts[n])
    shown, most = counts[first : last + 1], max(counts)
    width = (WIDTH - LEFT - RIGHT) / len(shown)
    tall = HEIGHT - TOP - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for share in (0.5, 1.0):
        y = TOP + tall * (1 - share)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{figure(most * share)}</text>')
    for n, count in enumerate(shown):
        x, height = LEFT + n * width, tall * count / most
        low, high = figure(edges[first + n]), figure(edges[first + n + 1])
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{TOP + tall - height:.1f}" width="{max(width - 2, 1):.1f}" '
            f'height="{height:.1f}"><title>{low} to {high}: {count}</title></rect>'
        )
    every = -(-len(shown) // 8)
    for n in range(0, len(shown) + 1, every):
        x = min(LEFT + n * width, WIDTH - 12)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{figure(edges[first + n])}</text>')
    below = f'<p class="soft"><small>{escape(about)}</small></p>' if about else ""
    return f'<figure class="chart">{caption}{"".join(parts)}</svg>{below}</figure>'
