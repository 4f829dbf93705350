"""The frame of the run's page: one HTML file without script and without anything from elsewhere, dark or light."""

from collections.abc import Iterable, Sequence
from html import escape

# Colours of lines s0 ... s7, for a light and a dark page: apart for colour-blind eyes too (Okabe and Ito, darkened or
# lightened until they stand out).
_LIGHT = ("#0063a6", "#c04f00", "#00785a", "#a8327d", "#8a6d00", "#3d7fb5", "#555f6b", "#b3261e")
_DARK = ("#67b7f0", "#f29a4a", "#3fcf9f", "#e48cc3", "#e6cf4a", "#9fc7e8", "#aab4c0", "#ff8a80")

_RULES = """
:root{color-scheme:light dark;--page:#f7f8fa;--card:#fff;--ink:#1b222b;--soft:#5b6673;--rule:#dfe3e8;--bad:#b3261e;
--badback:#fbe3e1;--good:#00695c;--goodback:#dcf1ec;--mid:#7a5200;--midback:#fbecd0;LIGHT}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--card:#1b2128;--ink:#e6e9ed;--soft:#a3adb8;--rule:#333c46;
--bad:#ff9a91;--badback:#4a201d;--good:#7fd8c4;--goodback:#163c35;--mid:#f2c879;--midback:#44330f;DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:16px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.15rem;margin:1.6em 0 .5em}h3{font-size:1rem;margin:1.2em 0 .3em}
p{margin:.4em 0}small,.soft,.empty{color:var(--soft)}a{color:inherit}
nav{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.9rem;margin:.5em 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:8px;margin:12px 0}
.facts div{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:8px 10px}
.facts b{display:block;font-size:1.15rem;font-variant-numeric:tabular-nums}
.facts span{color:var(--soft);font-size:.82rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:12px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px;min-width:0}
figcaption{font-weight:600;font-size:.92rem}figcaption small{font-weight:400}
svg{display:block;width:100%;height:auto}.bar{fill:var(--s0)}svg text{fill:var(--soft);font:10px system-ui,sans-serif}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.line{fill:none;stroke-width:1.6;stroke-linejoin:round}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 12px;margin:6px 0 0;padding:0;font-size:.8rem}
.legend b{font-variant-numeric:tabular-nums;font-weight:600}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:5px;vertical-align:-1px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.88rem}th,td{padding:5px 9px;text-align:left;white-space:nowrap}
th{color:var(--soft);font-weight:600}tr+tr td,thead+tbody td{border-top:1px solid var(--rule)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.wrap{white-space:normal;overflow-wrap:anywhere}
.utterance{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:9px 11px;margin:8px 0}
.utterance header{display:flex;flex-wrap:wrap;gap:4px 12px;align-items:center;font-size:.85rem;color:var(--soft)}
.utterance header b{color:var(--ink);overflow-wrap:anywhere}audio{width:100%;max-width:340px;height:34px}
.words{display:flex;flex-wrap:wrap;gap:3px 7px;margin-top:6px}
.w{display:inline-flex;flex-direction:column;line-height:1.3;border-radius:4px;padding:0 3px;overflow-wrap:anywhere}
.sub{background:var(--midback);color:var(--mid)}.del{background:var(--badback);color:var(--bad)}
.ins{background:var(--goodback);color:var(--good)}
.del s,.sub s,.ins u{text-decoration-thickness:1px}
.picture{overflow-x:auto}.picture svg{min-width:min(100%,520px)}.picture image{image-rendering:pixelated}
details{margin:.5em 0}summary{cursor:pointer}pre{overflow-x:auto;margin:0;padding:10px}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. A browser that obeys the policy in its head loads and runs nothing."""
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    light, dark = (";".join(f"--s{n}:{colour}" for n, colour in enumerate(colours)) for colours in (_LIGHT, _DARK))
    rules = _RULES.replace("LIGHT", light).replace("DARK", dark)
    rules += "".join(f"path.s{n}{{stroke:var(--s{n})}}.dot.s{n}{{fill:var(--s{n})}}" for n in range(len(_LIGHT)))
    rules += "".join(f"i.s{n}{{background:var(--s{n})}}" for n in range(len(_LIGHT)))
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{rules}</style>"
    )
    text = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{text}\n</body></html>\n'


def section(name: str, title: str, parts: Iterable[str]) -> str:
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "</section>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """(what, value) as tiles."""
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in pairs)
    return f'<div class="facts">{tiles}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1, wrap: bool = False) -> str:
    """Cells are plain text; the first `text_columns` columns are words, the others numbers. `wrap` breaks the words."""
    word = ' class="wrap"' if wrap else ""
    kinds = [word if column < text_columns else ' class="n"' for column in range(len(head))]
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def details(summary: str, content: str) -> str:
    """Folded away until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def alignment(pairs: Iterable[Sequence[str | None]]) -> str:
    """(reference, hypothesis) words, None on an empty side: errors by colour, and by strokes for who sees none."""
    words = []
    for reference, hypothesis in pairs:
        if reference == hypothesis:
            words.append(f'<span class="w">{escape(reference or "")}</span>')
        elif hypothesis is None:
            words.append(f'<span class="w del" title="deleted"><s>{escape(reference or "")}</s></span>')
        elif reference is None:
            words.append(f'<span class="w ins" title="inserted"><u>{escape(hypothesis)}</u></span>')
        else:
            sides = f"<s>{escape(reference)}</s><span>{escape(hypothesis)}</span>"
            words.append(f'<span class="w sub" title="substituted">{sides}</span>')
    return f'<div class="words">{"".join(words)}</div>'
