"""A line chart as an SVG file of its own, for pages of documentation."""

import re
from collections.abc import Sequence
from html import escape

from sumix_stream.report.chart import HEIGHT, NUM_COLOURS, WIDTH, Series, line_chart

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#65a30d")
_ROW = 17  # of the legend


def draw(title: str, series: Sequence[Series], *, unit: str = "") -> str:
    """`line_chart` as a file: its colours, a title and a legend inside, on white.

    Names that begin alike (`scratch, seed 0` and `scratch, seed 1`) have one colour, and one line of the legend.
    """
    groups = list(dict.fromkeys(_group(s.name) for s in series))
    drawing = re.search(r"<svg[^>]*>(.*)</svg>", line_chart(title, series), re.DOTALL)[1]
    colours = [_COLOURS[groups.index(_group(s.name)) % len(_COLOURS)] for s in series]
    style = "text{font:11px system-ui,sans-serif;fill:#334155}.grid{stroke:#e2e8f0}.line{fill:none;stroke-width:1.6}"
    style += "".join(f".line.s{n}{{stroke:{c}}}.dot.s{n}{{fill:{c}}}" for n, c in enumerate(colours[:NUM_COLOURS]))
    tall = HEIGHT + 24 + _ROW * len(groups) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{style}</style>",
        f'<rect width="{WIDTH}" height="{tall}" rx="8" fill="#ffffff"/>',
        f'<text x="12" y="18" font-weight="600">{escape(title)}{escape(f", {unit}" if unit else "")}</text>',
        f'<g transform="translate(0 22)">{drawing}</g>',
    ]
    for number, group in enumerate(groups):
        y = HEIGHT + 24 + _ROW * number + 10
        parts.append(f'<path d="M20 {y - 4}h18" stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2"/>')
        parts.append(f'<text x="44" y="{y}">{escape(group)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _group(name: str) -> str:
    return name.rpartition(", ")[0] or name
