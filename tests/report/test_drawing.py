"""Charts as files of their own."""

import xml.etree.ElementTree as ElementTree

from sumix_stream.report.chart import Series
from sumix_stream.report.drawing import draw

SVG = "{http://www.w3.org/2000/svg}"


def test_a_drawing_is_xml_with_title_lines_and_legend():
    series = [Series(f"{name}, seed {seed}", [(0, 90), (50, 40 + seed)]) for name in ("a<b", "c") for seed in (0, 1)]
    root = ElementTree.fromstring(draw("error & rate", series, unit="%"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "error & rate, %" in texts and texts[-2:] == ["a<b", "c"]
    lines = [e.get("class") for e in root.iter(f"{SVG}path") if "line" in (e.get("class") or "")]
    style = next(root.iter(f"{SVG}style")).text
    colours = [style.split(f".{name.replace(' ', '.')}{{stroke:")[1][:7] for name in lines]
    assert len(colours) == 4 and colours[0] == colours[1] != colours[2] == colours[3]
    height = float(root.get("viewBox").split()[3])
    assert all(float(e.get("y")) < height for e in root.iter(f"{SVG}text"))
