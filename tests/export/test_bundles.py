"""Exported steps against PyTorch's, streams of different ages in one batch."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from talkative import MIXERS, VOCAB_SIZE, LetterTokenizer, talkative_model
from textbook import textbook

from sumix_stream.context import ChunkContext
from sumix_stream.export import sherpa
from sumix_stream.export.bundle import encode_streams, greedy
from sumix_stream.export.export import FORMATS
from sumix_stream.export.steps import EncoderStep
from sumix_stream.features import whole_fbank

CASES = [
    ("sherpa-onnx", "fast", ChunkContext(8, 2)),
    ("sherpa-onnx", "fast", ChunkContext(4, None)),
    ("onnx", "fast", ChunkContext(8, 0)),
    pytest.param("onnx", "fast", ChunkContext(8, None), marks=pytest.mark.slow),
    pytest.param("torch-export", "fast", ChunkContext(8, 2), marks=pytest.mark.slow),
    *(
        pytest.param("sherpa-onnx", mixer, context, marks=pytest.mark.slow)
        for mixer, context in [
            ("full", ChunkContext(8, 0)),
            ("lite", ChunkContext(16, 1)),
            ("expdecay", ChunkContext(8, 2)),
            ("expdecay", ChunkContext(8, None)),
            ("attention", ChunkContext(8, 1)),
        ]
    ),
]


@pytest.mark.parametrize(("form", "mixer", "context"), CASES, ids=str)
def test_steps_equal_the_masked_forward_and_tokens_are_identical(form, mixer, context, bundle, sounds):
    model, opened = talkative_model(mixer), FORMATS[form].open(bundle(form, mixer, context))
    feats = [torch.from_numpy(whole_fbank(samples)) for samples in sounds]
    frames = encode_streams(opened, [part.numpy() for part in feats])
    tokens = greedy(opened, frames)
    for part, actual, found in zip(feats, frames, tokens, strict=True):
        with torch.inference_mode():
            wanted, _ = model.encoder(part[None], torch.tensor([len(part)]), context)
        assert actual.shape == wanted[0].shape
        assert np.abs(actual - wanted[0].numpy()).max() <= 1e-4
        assert found == textbook(model, wanted[0]).tokens
        assert len(found) >= len(part) / 20


def test_a_stream_does_not_depend_on_its_batch_mates(bundle, sounds):
    opened = FORMATS["sherpa-onnx"].open(bundle("sherpa-onnx", "fast", ChunkContext(8, 2)))
    feats = [whole_fbank(samples) for samples in sounds]
    together = encode_streams(opened, feats)
    for part, frames in zip(feats, together, strict=True):
        assert np.abs(encode_streams(opened, [part])[0] - frames).max() <= 1e-5


def test_the_sherpa_bundle_keeps_the_contract(bundle):
    context = ChunkContext(8, 2)
    folder = bundle("sherpa-onnx", "fast", context)
    encoder = onnx.load(folder / sherpa.ENCODER)
    meta = {entry.key: entry.value for entry in encoder.metadata_props}
    caches = {
        name: [int(meta[f"{name}_dim{i}"]) for i in (1, 2, 3)] for name in ("cache_last_channel", "cache_last_time")
    }
    assert shapes(encoder.graph.input) == {
        "audio_signal": ["streams", 80, 32],
        "length": ["streams"],
        "cache_last_channel": ["streams", *caches["cache_last_channel"]],
        "cache_last_time": ["streams", *caches["cache_last_time"]],
        "cache_last_channel_len": ["streams"],
    }
    assert list(shapes(encoder.graph.output).values()) == [
        ["streams", 32, 8],
        ["streams"],
        *(["streams", *dims] for dims in caches.values()),
        ["streams"],
    ]
    numbers = {key: meta[key] for key in ("vocab_size", "window_size", "chunk_shift", "subsampling_factor")}
    assert numbers == {"vocab_size": "23", "window_size": "32", "chunk_shift": "32", "subsampling_factor": "4"}
    assert meta["normalize_type"] == "NA"
    # Two chunks' sums and counts of each layer: 2 * 32 + 2 values in rows of 32.
    assert caches["cache_last_channel"] == [2, 3, 32]

    decoder = onnx.load(folder / sherpa.DECODER)
    assert [*shapes(decoder.graph.input).values()] == [["streams", 1], ["streams"], *[[1, "streams", 24]] * 2]
    assert [*shapes(decoder.graph.output).values()] == [["streams", 24, 1], ["streams"], *[[1, "streams", 24]] * 2]
    joiner = onnx.load(folder / sherpa.JOINER)
    assert [*shapes(joiner.graph.input).values()] == [["streams", 32, 1], ["streams", 24, 1]]
    assert [*shapes(joiner.graph.output).values()] == [["streams", 1, 1, VOCAB_SIZE]]

    lines = (folder / sherpa.TOKENS).read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"{LetterTokenizer().piece(1)} 0"
    assert lines[-1] == f"<blk> {VOCAB_SIZE - 1}"
    assert len(lines) == VOCAB_SIZE


def test_plain_files_carry_their_geometry_and_name_their_state(bundle):
    encoder = onnx.load(bundle("onnx", "fast", ChunkContext(8, 0)) / "encoder.onnx")
    meta = {entry.key: entry.value for entry in encoder.metadata_props}
    assert (meta["window"], meta["blank_id"], meta["left_context"], meta["sample_rate"]) == ("32", "0", "0", "16000")
    state = {f"layers.{i}.conv": [3, 32] for i in (0, 1)}
    state |= {"subsampling.feats": [1, 80], "subsampling.hidden": [8, 1, 40]}
    assert json.loads(meta["state"]) == state
    given = shapes(encoder.graph.input)
    assert {name: dims[1:] for name, dims in list(given.items())[2:]} == state
    assert shapes(encoder.graph.output).keys() == {"frames", "frame_lengths", *(f"next.{name}" for name in state)}


@pytest.mark.parametrize("mixer", MIXERS)
def test_state_that_grows_is_refused_and_all_else_is_not(mixer):
    encoder = talkative_model(mixer).encoder
    assert EncoderStep(encoder, ChunkContext(8, 1)).init_state(3)[0].shape[0] == 3
    if mixer == "attention":
        with pytest.raises(ValueError, match=r"fixed size: give --left-context"):
            EncoderStep(encoder, ChunkContext(8, None))
    else:
        EncoderStep(encoder, ChunkContext(8, None))
    with pytest.raises(ValueError, match="streaming needs one chunk size"):
        EncoderStep(encoder, ChunkContext.full())


@pytest.mark.parametrize("num_samples", [1, 79, 80, 5119, 5120, 5200, 5201, 20_000])
def test_padding_leaves_one_feature_frame_beyond_whole_chunks(num_samples):
    context, window = ChunkContext(8, 2), 32
    padded = num_samples + sherpa.padding(num_samples, context)
    num_frames = (padded + 80) // 160
    assert num_frames % window == 1
    assert (num_samples + 80) // 160 <= num_frames - 1 < (num_samples + 80) // 160 + window


def shapes(values) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def test_files_are_all_there_is(bundle):
    files = {path.name for path in Path(bundle("sherpa-onnx", "fast", ChunkContext(8, 2))).iterdir()}
    assert files == {"encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"}


def test_running_sums_keep_what_fp32_drops(bundle):
    """Hours of audio: sums so large that a chunk's share falls below their last digit goes into the compensation."""
    context = ChunkContext(4, None)
    opened = FORMATS["sherpa-onnx"].open(bundle("sherpa-onnx", "fast", context))
    module = sherpa.SherpaEncoder(talkative_model(), context)
    channel, time, count = module.init_state(2)
    channel[:, :, 0] = 3e7 * torch.rand(channel[:, :, 0].shape)  # rows: sums, compensations, counts
    channel[:, :, 2, 0] = 1e6
    feats, lengths = torch.randn(2, 16, 80), torch.tensor([16, 16])
    with torch.inference_mode():
        wanted = module(feats.mT, lengths, channel, time, count)[2][:, :, 1].numpy()
    state = [part.numpy() for part in (channel, time, count)]
    found = opened.encode(feats.numpy(), lengths.numpy(), state)[2][0][:, :, 1]
    assert np.abs(wanted).max() > 0.1
    assert np.abs(wanted - found).max() < 1e-3
