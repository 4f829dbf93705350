"""What training hears, for people: FLAC files, and a page that plays them."""

import base64
import html
from pathlib import Path

from sumix_stream.corpora.preparation import write_flac
from sumix_stream.data.batching.loader import TrainLoader
from sumix_stream.timebase import Timebase

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What training hears</title>
<style>body {{ font: 15px sans-serif; margin: 2em; max-width: 75em }}
td {{ padding: .4em .8em .4em 0; vertical-align: top }}
audio {{ width: 22em }} small {{ color: #666 }}</style>
<h1>What training hears</h1>
<p>{about}</p>
<table>
<tr><th align="left">utterance<th align="left">as training hears it<th align="left">as it was recorded</tr>
{rows}
</table></html>
"""
_ROW = "<tr><td>{text}<br><small>{id}, {seconds:.1f} s</small><td>{augmented}<td>{recorded}</tr>"


def write_examples(loader: TrainLoader, folder: Path, number: int, epoch: int = 0) -> Path:
    """Write `number` utterances of the epoch's first batches as `NN.flac` and `NN.recorded.flac`; page with players.

    The page, `listen.html`, holds the sound itself. Returns its path. Fewer are written where there are no more.
    """
    if number < 1:
        raise ValueError(f"number must be at least 1 utterance, got {number}")
    folder.mkdir(parents=True, exist_ok=True)
    utterances = (heard for index in range(len(loader.plan(epoch))) for heard in loader.hear(epoch, index))
    rows = []
    for heard, _ in zip(utterances, range(number), strict=False):
        players = {}
        for name, samples in (("recorded", heard.recorded), ("augmented", heard.augmented)):
            path = folder / f"{len(rows):02d}{'' if name == 'augmented' else '.recorded'}.flac"
            write_flac(path, samples)
            sound = base64.b64encode(path.read_bytes()).decode()
            players[name] = f'<audio controls preload="none" src="data:audio/flac;base64,{sound}"></audio>'
        seconds = Timebase().seconds(len(heard.augmented))
        rows.append(_ROW.format(text=html.escape(heard.text), id=html.escape(heard.id), seconds=seconds, **players))
    about = (
        f"{len(rows)} utterances of epoch {epoch}, seed {loader.seed}. SpecAugment, which masks features, is not heard."
    )
    page = folder / "listen.html"
    page.write_text(_PAGE.format(about=about, rows="\n".join(rows)), encoding="utf-8")
    return page
