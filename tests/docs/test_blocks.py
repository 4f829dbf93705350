"""Code of the pages runs, and what they quote from the project's files is what stands there.

A Python block after the line ``<!-- runnable -->`` is run; blocks of a page share their names, in an empty folder that
holds a small untrained model, `exp/tiny`, and four seconds of synthetic sound, `a.wav`. A block after
``<!-- from FILE: FIRST .. LAST -->`` holds the lines of a file from the first that begins with FIRST to the next that
begins with LAST, which is left out.
"""

import functools
import re
import subprocess
import sys
from pathlib import Path

import markdown_pages
import numpy as np
import pytest
import soundfile
from conftest import ROOT
from talkative import sound

import sumix_stream as sx
from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.tasks.checkpoint import save_model, write_checkpoint
from sumix_stream.tokenizer import train_tokenizer

PAGES = markdown_pages.pages()
WITH_CODE = [p for p in PAGES if any(block.note == "runnable" for block in markdown_pages.blocks(p))]
QUOTE = re.compile(r"from (\S+): (.+) \.\. (.+)")
COMMAND = re.compile(
    r"^ *(?:\w+=\S+ )*(?:torchrun .*? )?(bin/bench [\w-]+|bin/\w+|sumix [\w-]+|egs/\w+/\w+)(?= |$)(.*)", re.M
)
OPTION = re.compile(r"(?<=\s)--[a-z][\w.-]*")
NO_PARSER = ("bin/demo", "bin/test")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Where blocks run."""
    out = tmp_path_factory.mktemp("blocks")
    text = out / "text.txt"
    text.write_text("one two three four five\nPIANO MUSIC IN THE GARDEN\n" * 20)
    tokenizer = train_tokenizer(text.read_text().splitlines(), out / "tokenizer.model", 40)
    encoder = EncoderConfig(dim=16, num_layers=2, ffn_dim=32, conv_kernel=5, subsampling_channels=4)
    model = sx.build_model(ModelConfig(encoder, PredictorConfig(16, 16), 16), tokenizer.vocab_size)
    (out / "exp").mkdir()
    write_checkpoint(out / "exp" / "tiny", lambda directory: save_model(directory, model, tokenizer))
    soundfile.write(out / "a.wav", (sound(4.0) * 32767).astype(np.int16), 16_000)
    return out


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_blocks_run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "page"}
    for block in markdown_pages.blocks(page):
        if block.note == "runnable":
            code = "\n" * (block.line - 1) + block.code  # so that errors name the page's lines
            exec(compile(code, str(page), "exec"), names)


def test_there_are_blocks_to_run():
    assert {"README.md", "docs/python.md"} <= set(map(name, WITH_CODE))
    assert sum("docs/kernels/" in name(page) for page in WITH_CODE) >= 5


@functools.cache
def quoted(file: str, first: str, last: str) -> str:
    lines = (ROOT / file).read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(first))
    end = next(number for number, line in enumerate(lines) if number > begin and line.startswith(last))
    return "\n".join(lines[begin:end]).strip("\n") + "\n"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_quotations_are_exact(page):
    for block in markdown_pages.blocks(page):
        if block.note.startswith("from "):
            quote = QUOTE.fullmatch(block.note)
            assert quote, f"{name(page)}:{block.line}: expected `from FILE: FIRST .. LAST`, got {block.note!r}"
            assert block.code == quoted(*quote.groups()), f"{name(page)}:{block.line} differs from {quote[1]}: copy it"


@functools.cache
def options_of(command: str) -> set[str]:
    """What a command's help lists."""
    program, *rest = command.split()
    parts = ["-m", "sumix_stream.cli.main"] if program == "sumix" else [str(ROOT / program)]
    done = subprocess.run([sys.executable, *parts, *rest, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return set(re.findall(r"--[a-z][\w.-]*\w", done.stdout))


def wrong_options(text: str) -> list[str]:
    """Options of the project's commands that they do not have."""
    found = []
    for command, arguments in COMMAND.findall(text.replace("\\\n", " ")):
        options = OPTION.findall(arguments.partition(" # ")[0])
        if options and command not in NO_PARSER and is_python(command):
            found += [f"{command} {option}" for option in options if option not in options_of(command)]
    return found


def is_python(command: str) -> bool:
    path = ROOT / command.split()[0]
    return command.startswith("sumix ") or (path.is_file() and "python" in path.open().readline())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_the_options_that_are_shown(page):
    assert wrong_options(page.read_text()) == []


def test_a_wrong_option_is_found():
    text = (
        "    bin/train --config x \\\n      --train.max_step 5\n    torchrun --nnodes 2 bin/train --confg y   # --z\n"
    )
    assert wrong_options(text) == ["bin/train --train.max_step", "bin/train --confg"]
    assert wrong_options("    sumix decode --beem 4\n    bin/bench serve --nobody 3") == [
        "sumix decode --beem",
        "bin/bench serve --nobody",
    ]
