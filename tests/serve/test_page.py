"""The browser's page: one file, no asset from elsewhere, and the protocol's own constants."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest
from serving import run, serving
from websockets.asyncio.client import connect
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus

from sumix_stream.audio import MAX_RATE, MIN_RATE
from sumix_stream.serve import protocol
from sumix_stream.serve.http import page, page_policy


async def served() -> tuple[Headers, str]:
    async with serving() as (_, port):
        with pytest.raises(InvalidStatus) as answered:  # a websocket at / is answered with the page
            await connect(f"ws://127.0.0.1:{port}/")
        response = answered.value.response
        assert response.status_code == 200
        return response.headers, response.body.decode()


def script() -> str:
    (found,) = re.findall(r"<script>(.*?)</script>", page(), re.S)
    return found


def test_it_is_served_whole():
    headers, body = run(served)
    assert body == page() and body.rstrip().endswith("</html>")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"] == page_policy()
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_comes_from_elsewhere():
    text = page()
    assert not re.findall(r"https?://", text)
    links = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", text) + re.findall(r"url\(([^)]*)", text)
    assert links == ["data:,"]
    assert "@import" not in text and "import(" not in text and "eval(" not in text and "innerHTML" not in text
    assert re.findall(r"fetch\(([^)]*)\)", text) == ['"health"']


def test_the_policy_names_the_script_and_the_style():
    style = re.search(r"<style>(.*?)</style>", page(), re.S)[1]
    for part in (script(), style):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page_policy()
    assert "unsafe" not in page_policy()
    assert not re.search(r"""\s(style|on\w+)\s*=\s*["']""", page()), "the policy would stop it"


def test_its_constants_are_the_protocol_s():
    constants = dict(re.findall(r'([A-Z_]+) = "?([\w/.]+)"?[,;]', script()))
    assert "/" + constants["PATH"] == protocol.PATH  # relative: the page may lie below any path
    assert int(constants["PROTOCOL"]) == protocol.VERSION
    assert {constants["LIVE_FORMAT"], constants["FILE_FORMAT"]} <= protocol.DTYPES.keys()
    assert MIN_RATE <= int(constants["FILE_RATE"]) <= MAX_RATE
    for kind in ("ready", "final", "done", "error", "progress"):
        assert f'message.type === "{kind}"' in script()
    for kind in ("start", "end"):
        assert f'type: "{kind}"' in script()


def test_it_can_be_used_without_eyes_and_on_phones():
    text = page()
    assert '<html lang="en">' in text and 'name="viewport"' in text
    ids = set(re.findall(r'\sid="(\w+)"', text))
    assert set(re.findall(r'\$\("(\w+)"\)', script())) <= ids
    assert set(re.findall(r'\sfor="(\w+)"', text)) <= ids
    for control in re.findall(r"<button[^>]*>(.*?)</button>", text):
        assert control.strip()


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_script_is_well_formed(tmp_path):
    (tmp_path / "page.js").write_text(script())
    (tmp_path / "worklet.js").write_text(re.search(r"WORKLET = `(.*?)`;", script(), re.S)[1])
    for name in ("page.js", "worklet.js"):
        done = subprocess.run(["node", "--check", name], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
