"""The light install recognises: an environment that has what setup.py's install_requires name and nothing else of this
one's packages, PyTorch and Lhotse among them. It is a virtual environment of links to those packages, so that making it
needs neither network nor space."""

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
from conftest import ROOT
from packaging.requirements import Requirement
from talkative import VOCAB_SIZE, sound, talkative_model

import sumix_stream as sx
from sumix_stream.checksums import write_sums
from sumix_stream.search.options import SearchOptions
from sumix_stream.serve.client import transcribe
from sumix_stream.tasks.checkpoint import save_model
from sumix_stream.tokenizer import train_tokenizer

RATE, CHUNK = 16_000, ("320ms", 2)
LIBRARY = """
import json, sys
import soundfile
import sumix_stream as sx
from sumix_stream.checksums import write_sums
from sumix_stream.search.options import SearchOptions

recognizer = sx.load(sys.argv[1])
samples, rate = soundfile.read(sys.argv[2], dtype="float32")
stream = recognizer.stream("320ms", 2)
for start in range(0, len(samples), 1601):
    stream.feed(rate, samples[start : start + 1601])
beam = SearchOptions(method="modified_beam")
beams = recognizer.transcribe(sys.argv[2], "320ms", 2, search=beam)
found = [stream.finish(), recognizer.transcribe(sys.argv[2]), beams]
try:
    sx.load(sys.argv[1], runtime="torch")
except ValueError as error:
    refused = str(error)
heavy = sorted({"torch", "lhotse", "triton", "onnxruntime"} & set(sys.modules))
print(json.dumps({"tokens": [one.tokens for one in found], "refused": refused, "heavy": heavy}))
"""


class Place(NamedTuple):
    """A light environment, with a checkpoint and a recording."""

    python: Path
    checkpoint: Path
    audio: Path

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=300, env=environment())
        assert done.returncode == code, done.stderr
        return done

    def command(self, *command: object) -> list[str]:
        return [str(self.python), *map(str, command)]


def environment() -> dict[str, str]:
    """In which bin/* stay with the Python that runs them."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "_SUMIX_VENV_ENTERED": "1", "OMP_NUM_THREADS": "1"}


def light_packages() -> set[str]:
    """Distributions of install_requires and of what they need."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    (listed,) = (keyword.value for keyword in keywords if keyword.arg == "install_requires")
    waiting, found = [Requirement(text) for text in ast.literal_eval(listed)], set()
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += map(Requirement, distribution(name).requires or [])
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("light")
    try:
        packages = light_packages()
    except PackageNotFoundError as error:
        pytest.skip(f"the light install's {error.name} is not here")
    assert {"numpy", "numba", "llvmlite", "websockets"} <= packages and not {"torch", "lhotse"} & packages
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    code = "import site; print(site.getsitepackages()[0])"
    where = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    site = Path(where.strip())
    for package in sorted(packages):
        about = distribution(package)
        for name in {file.parts[0] for file in about.files} - {"..", "__pycache__"}:
            (site / name).symlink_to(Path(about.locate_file(name)).resolve())
    (site / "sumix_stream").symlink_to(ROOT / "sumix_stream")
    (site / "sumix_kernels").symlink_to(ROOT / "kernels")

    checkpoint = folder / "model"
    checkpoint.mkdir()
    letters = " ".join(chr(ord("a") + n) for n in range(VOCAB_SIZE - 3))
    tokenizer = train_tokenizer([letters], checkpoint / "t.model", model_type="char")
    save_model(checkpoint, talkative_model(), tokenizer)
    write_sums(checkpoint)
    soundfile.write(folder / "a.wav", sound(3.0), RATE, subtype="FLOAT")
    return Place(python, checkpoint, folder / "a.wav")


@pytest.fixture(scope="module")
def by_torch(light: Place) -> sx.Recognizer:
    return sx.load(light.checkpoint, runtime="torch")


def test_the_library_gives_pytorch_s_tokens(light, by_torch):
    found = json.loads(light.run("-c", LIBRARY, light.checkpoint, light.audio).stdout)
    stream = by_torch.stream(*CHUNK)
    stream.feed(RATE, soundfile.read(light.audio, dtype="float32")[0])
    beam = by_torch.transcribe(light.audio, *CHUNK, search=SearchOptions(method="modified_beam"))
    expected = [stream.finish().tokens, by_torch.transcribe(light.audio).tokens, beam.tokens]
    assert found["tokens"] == expected and all(len(tokens) > 10 for tokens in expected)
    assert len({str(tokens) for tokens in expected}) == 3
    assert found["heavy"] == []
    assert "not torch: torch is not installed: pip install 'sumix-stream[train]'" in found["refused"]


def test_commands_recognise_files(light, by_torch):
    options = "--checkpoint", light.checkpoint, light.audio
    streamed = light.run(ROOT / "bin" / "stream_decode", *options, "--chunk", "320ms")
    stream = by_torch.stream("320ms")
    stream.feed(RATE, soundfile.read(light.audio, dtype="float32")[0])
    assert streamed.stdout.splitlines()[-1] == f"{light.audio}: {stream.finish().text}"
    whole = light.run(ROOT / "bin" / "decode", *options, "--runtime", "compiled")
    assert whole.stdout.splitlines()[-1] == f"{light.audio}: {by_torch.transcribe(light.audio).text}"
    captions = light.run(ROOT / "bin" / "decode", *options, "--format", "json", "--chunk", "320ms")
    assert json.loads(captions.stdout)["text"] == by_torch.transcribe(light.audio, "320ms").text


def test_what_needs_more_says_which_extra(light, tmp_path):
    options = "--config", ROOT / "egs" / "mini" / "conf" / "tiny.yaml", "--exp-dir", tmp_path
    assert "pip install 'sumix-stream[train]'" in light.run(ROOT / "bin" / "train", *options, code=1).stderr
    scoring = "--checkpoint", light.checkpoint, "--cuts", tmp_path / "cuts.jsonl.gz"
    assert "pip install 'sumix-stream[train]'" in light.run(ROOT / "bin" / "stream_decode", *scoring, code=2).stderr
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0\0\0\x20ftypisom" + bytes(99))
    refused = light.run(ROOT / "bin" / "decode", "--checkpoint", light.checkpoint, film, code=2).stderr
    assert "pip install 'sumix-stream[media]'" in refused and "ffmpeg -i" in refused
    heard = light.run(ROOT / "bin" / "stream_decode", "--checkpoint", light.checkpoint, "--microphone", code=2)
    assert "pip install 'sumix-stream[microphone]'" in heard.stderr
    for name in ("encoder.onnx", "predictor.onnx"):
        (tmp_path / name).write_bytes(b"")
    bundle = light.run(ROOT / "bin" / "decode", "--checkpoint", tmp_path, light.audio, code=2)
    assert "pip install 'sumix-stream[onnx]'" in bundle.stderr


def test_the_server_serves(light, by_torch):
    """In a worker process."""
    samples, _ = soundfile.read(light.audio, dtype="float32")
    command = light.command(ROOT / "bin" / "serve", "--model", light.checkpoint, "--port", 0, "--workers", 1)
    process = subprocess.Popen([*command, "--chunk", "320ms"], stderr=subprocess.PIPE, text=True, env=environment())
    try:
        logged = map(json.loads, iter(process.stderr.readline, ""))
        listening = next(line for line in logged if not line["event"].startswith("runtime compiled"))
        assert listening["event"] == "listening" and listening["runtime"] == "compiled", listening
        port = int(re.search(r":(\d+)/", listening["url"])[1])
        found = asyncio.run(transcribe(f"ws://127.0.0.1:{port}/stream", samples))
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    stream = by_torch.stream("320ms")
    stream.feed(RATE, samples)
    pieces = [by_torch.tokenizer.piece(token) for token in stream.finish().tokens]
    assert [piece for final in found.segments for piece in final["tokens"]] == pieces
