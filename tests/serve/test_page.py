"""The browser's page: one file, no asset from elsewhere, and the protocol's own constants."""

import asyncio
import base64
import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT
from serving import PCM, expected, run, serving
from websockets.asyncio.client import connect
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus

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
    assert constants["PATH"] == protocol.PATH
    assert int(constants["PROTOCOL"]) == protocol.VERSION
    assert constants["FORMAT"] in protocol.DTYPES
    assert 4_000 <= int(constants["FILE_RATE"]) <= 192_000
    for kind in ("ready", "final", "done", "error", "progress"):
        assert f'message.type === "{kind}"' in script() or f'message.type !== "{kind}"' in script()
    for kind in ("start", "end"):
        assert f'type: "{kind}"' in script()


def test_it_can_be_used_without_eyes_and_on_phones():
    text = page()
    assert '<html lang="en">' in text and 'name="viewport"' in text
    assert 'role="log" aria-live="polite"' in text and 'role="status"' in text and 'role="alert"' in text
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


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.parametrize("way", ["file", "microphone"])
def test_the_script_streams_and_shows_what_the_server_says(way, tmp_path):
    """In node, with as much of a browser as the script touches."""
    (tmp_path / "page.js").write_text(script())
    (PCM / np.float32(32768)).astype("<f4").tofile(tmp_path / "audio.f32")
    harness = ROOT / "tests" / "serve" / "page_in_node.mjs"

    async def test():
        async with serving() as (_, port):
            process = await asyncio.create_subprocess_exec(
                *("node", "--experimental-websocket", harness),
                *("page.js", f"http://127.0.0.1:{port}/", "audio.f32", way),
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            return *(await process.communicate()), process.returncode

    out, err, code = run(test)
    if b"bad option" in err:
        pytest.skip("this node has no WebSocket")
    assert code == 0, err.decode()
    shown = json.loads(out)
    assert shown["lines"] == [hypothesis.text for hypothesis in expected(PCM) if hypothesis.tokens]
    assert (shown["fault"], shown["partial"]) == ("", "") and shown["state"].startswith("Done: 4.0 s")
    assert (way == "file") == (shown["latency"] == "")
