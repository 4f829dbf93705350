"""Modified beam search against the lattice it searches, against greedy search, and against itself in other batches."""

from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from conftest import needs_numba
from talkative import VOCAB_SIZE, runtime_of
from torch import Tensor

from sumix_kernels.rnnt import naive
from sumix_stream.config import EncoderConfig, ModelConfig, PredictorConfig
from sumix_stream.runtime.base import Runtime
from sumix_stream.search import history
from sumix_stream.search.beam import BeamState, NBest, beam_decode
from sumix_stream.search.greedy import greedy_decode
from sumix_stream.search.hotwords import Hotwords
from sumix_stream.search.options import SearchOptions
from sumix_stream.tasks.build import build_model
from sumix_stream.tasks.transducer.model import Transducer

KINDS = ["torch", pytest.param("compiled", marks=needs_numba)]  # of all streams at a time, or one by one


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> Runtime:
    return runtime_of(kind=request.param)


@pytest.fixture(scope="module", params=KINDS)
def tiny(request) -> Runtime:
    return runtime_of(make_tiny(), request.param)


@cache
@torch.inference_mode(False)
def make_tiny() -> Transducer:
    """Three tokens and blank, with probabilities far from even."""
    config = ModelConfig(
        encoder=EncoderConfig(dim=8, num_layers=1, ffn_dim=8, num_heads=2, conv_kernel=3, subsampling_channels=2),
        predictor=PredictorConfig(embed_dim=8, hidden_dim=8),
        joiner_dim=8,
        ctc=False,
    )
    model = build_model(config, vocab_size=4, seed=3)
    with torch.no_grad():
        for weight in (model.joiner.project_encoder.weight, model.predictor.lstm.weight_ih_l0):
            weight.mul_(3)
        model.joiner.output.weight.mul_(5)
        model.joiner.output.bias.zero_()
    return model


def frames(*lengths: int, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Encoder frames like LayerNormed ones; what is past a length is not zero, so that looking at it shows."""
    return torch.randn(len(lengths), max(lengths), dim).numpy(), np.array(lengths)


def beam(size: int = 4, **options: object) -> SearchOptions:
    return SearchOptions(method="modified_beam", beam=size, **{"nbest": size, **options})


def same(actual: NBest, expected: NBest) -> None:
    assert [x.tokens for x in actual] == [x.tokens for x in expected]
    assert [x.frames for x in actual] == [x.frames for x in expected]
    for a, e in zip(actual, expected, strict=True):
        assert a.confidence == pytest.approx(e.confidence, abs=1e-5)
        assert a.score == pytest.approx(e.score, abs=1e-4)


@needs_numba
@pytest.mark.parametrize("size", [1, 3, 4, 9])
@pytest.mark.parametrize("options", [{}, {"blank_penalty": 2.0, "temperature": 1.5}], ids=str)
def test_compiled_searches_find_the_same(monkeypatch, size, options):
    """Piece after piece, the whole of the state too; streams of several lengths, none among them."""
    model, wanted = runtime_of(kind="compiled"), beam(size, **options)
    states, arrays = [None, None], model.beam_arrays
    monkeypatch.setattr(type(model), "beam_arrays", None)
    for _ in range(3):
        enc, lengths = frames(17, 0, 5, 24)
        found = []
        for way, given in enumerate((arrays, None)):
            monkeypatch.setattr(type(model), "beam_arrays", given)
            nbest, states[way] = beam_decode(model, enc, lengths, states[way], wanted)
            found.append(nbest)
        for actual, expected in zip(*found, strict=True):
            same(actual, expected)
        mine, theirs = (state.beams for state in states)
        for name in ("hashes", "parents", "last"):
            alive = theirs.scores > -np.inf
            assert np.array_equal(getattr(mine, name)[alive], getattr(theirs, name)[alive]), name
        assert any(scored.tokens for nbest in found[0] for scored in nbest)


def lattice_scores(model: Transducer, enc: Tensor, options: SearchOptions) -> dict[tuple[int, ...], float]:
    """Log-probability of every sequence over frames (T, D): the textbook's modified lattice."""
    scores = {}
    num_frames = len(enc)
    with torch.inference_mode():
        for length in range(num_frames + 1):
            for tokens in product(range(1, model.vocab_size), repeat=length):
                targets = torch.tensor([tokens], dtype=torch.int64).reshape(1, length)
                logits = model.joiner(enc[None, :, None], model.predictor(targets)[:, None]).double()  # (1, T, U+1, V)
                logits[..., 0] -= options.blank_penalty
                boundary = torch.tensor([[0, 0, length, num_frames]])
                logits = logits / options.temperature
                loss = naive.rnnt_loss(logits, targets, 0, boundary, "modified", 0.0)
                scores[tokens] = -loss.item()
    return scores


@pytest.mark.parametrize("options", [{}, {"blank_penalty": 1.5}, {"temperature": 2.0}], ids=str)
def test_wide_beam_finds_every_sequence_with_the_lattices_score(tiny, options):
    enc, lengths = frames(4, dim=8)
    options = beam(400, **options)
    (found,), _ = beam_decode(tiny, enc, lengths, options=options)
    expected = lattice_scores(make_tiny(), torch.from_numpy(enc[0]), options)
    assert len(expected) == 1 + 3 + 9 + 27 + 81
    assert {tuple(x.tokens): x.score for x in found} == pytest.approx(expected, abs=1e-4)
    assert sum(torch.tensor([x.score for x in found]).exp()) == pytest.approx(1.0, abs=1e-4)
    assert tuple(found[0].tokens) == max(expected, key=expected.get)


def test_times_and_confidences_are_the_likelier_alignments(tiny):
    """A token in one of two frames: two alignments make one sequence."""
    at = []
    for _ in range(10):
        enc, lengths = frames(2, dim=8)
        (found,), _ = beam_decode(tiny, enc, lengths, options=beam(20))
        for result in (x for x in found if len(x.tokens) == 1):
            (token,) = result.tokens
            with torch.inference_mode():
                module = make_tiny()
                pred = module.predictor(torch.tensor([[token]]))
                p = module.joiner(torch.from_numpy(enc)[0, :, None], pred).softmax(-1)  # (T, U+1, V)
            ways = torch.stack([p[0, 0, token] * p[1, 1, 0], p[0, 0, 0] * p[1, 0, token]])
            assert result.frames == [int(ways.argmax())]
            assert result.confidence == pytest.approx([p[result.frames[0], 0, token].item()], abs=1e-5)
            assert result.score == pytest.approx(ways.sum().log().item(), abs=1e-5)
            at += result.frames
    assert 5 < sum(at) < len(at) - 5


def test_alignments_of_a_sequence_are_added(tiny):
    """The best sequence is not always that of the best alignment, and never the worse for it."""
    differs = 0
    for _ in range(6):
        enc, lengths = frames(4, dim=8)
        options = beam(8, temperature=4.0)
        (found,), _ = beam_decode(tiny, enc, lengths, options=options)
        (alone,), _ = beam_decode(tiny, enc, lengths, options=beam(1, temperature=4.0))
        expected = lattice_scores(make_tiny(), torch.from_numpy(enc[0]), options)
        assert tuple(found[0].tokens) == max(expected, key=expected.get)
        differs += found[0].tokens != alone[0].tokens
    assert differs


@pytest.mark.parametrize("blank_penalty", [0.0, 1.0])
def test_beam_of_one_is_greedy_search_with_one_symbol_a_frame(model, blank_penalty):
    enc, lengths = frames(1, 7, 40, 8, 0, 33, 9)
    greedy = SearchOptions(max_symbols=1, blank_penalty=blank_penalty)
    expected, _ = greedy_decode(model, enc, lengths, options=greedy)
    found, _ = beam_decode(model, enc, lengths, options=beam(1, blank_penalty=blank_penalty))
    for (actual,), reference in zip(found, expected, strict=True):
        assert actual.tokens == reference.tokens
        assert actual.frames == reference.frames
        assert actual.confidence == pytest.approx(reference.confidence, abs=1e-5)
    assert sum(len(x.tokens) for x in expected) > 20


def test_results_are_sorted_and_unique(model):
    enc, lengths = frames(40, 12)
    for nbest in beam_decode(model, enc, lengths, options=beam(8))[0]:
        assert len(nbest) == 8
        assert [x.score for x in nbest] == sorted((x.score for x in nbest), reverse=True)
        assert len({tuple(x.tokens) for x in nbest}) == 8
        for x in nbest:
            assert x.frames == sorted(set(x.frames)), "two tokens at a frame"
            assert all(0 < p <= 1 for p in x.confidence)


def test_more_hypotheses_than_sequences(tiny):
    """Places in the beam that nothing fills stay empty: no sequence comes twice, and probabilities sum to 1."""
    enc, lengths = frames(3, dim=8)
    for size in range(41, 120):
        (found,), _ = beam_decode(tiny, enc, lengths, options=beam(size))
        assert len({tuple(x.tokens) for x in found}) == len(found) == 1 + 3 + 9 + 27
        assert sum(torch.tensor([x.score for x in found]).exp()) == pytest.approx(1.0, abs=1e-4)


def test_a_wider_beam_is_no_worse(model):
    enc, lengths = frames(30, 30, 30)
    scores = [[x[0].score for x in beam_decode(model, enc, lengths, options=beam(k))[0]] for k in (1, 4, 16)]
    for narrow, wide in pairwise(scores):
        assert all(w >= n - 1e-4 for n, w in zip(narrow, wide, strict=True))
    assert scores[2] != scores[0]


def test_batch_mates_change_nothing(model):
    enc, lengths = frames(1, 7, 40, 8, 0, 33, 9)
    together, _ = beam_decode(model, enc, lengths, options=beam())
    for n, length in enumerate(lengths.tolist()):
        (alone,), _ = beam_decode(model, enc[n : n + 1, :length], lengths[n : n + 1], options=beam())
        same(together[n], alone)


@pytest.mark.parametrize("settle", [1, 64])
@pytest.mark.parametrize("pieces", [[1] * 36, [4] * 9, [35, 1], [10, 0, 26]], ids=str)
def test_in_pieces_equals_whole(model, monkeypatch, pieces, settle):
    enc, lengths = frames(36, 36, 36)
    expected, _ = beam_decode(model, enc, lengths, options=beam())
    monkeypatch.setattr(history, "_SETTLE", settle)
    state = None
    for piece in np.split(enc, np.cumsum(pieces)[:-1], axis=1):
        found, state = beam_decode(model, piece, np.full(3, piece.shape[1]), state, beam())
    for actual, reference in zip(found, expected, strict=True):
        same(actual, reference)
    assert state.num_frames.tolist() == [36, 36, 36]


def test_what_all_hypotheses_share_leaves_the_tensors(model, monkeypatch):
    """So that a chunk of a long stream takes no longer than its first; an older state can still be gone on from."""
    monkeypatch.setattr(history, "_SETTLE", 8)
    enc, length = frames(400)[0], np.array([20])
    states, options = [BeamState.init(model, 1, beam())], beam()
    for piece in np.split(enc, 20, axis=1):
        found, state = beam_decode(model, piece, length, states[-1], options)
        states.append(state)
    (expected,), _ = beam_decode(model, enc, np.array([400]), options=options)
    same(found[0], expected)
    assert state.history.settled[0].count > 100
    assert state.history.tokens.shape[2] < 40
    other, _ = frames(20)
    (branch,), _ = beam_decode(model, other, length, states[10], options)
    (expected_branch,), _ = beam_decode(
        model, np.concatenate([enc[:, :200], other], 1), np.array([220]), options=options
    )
    same(branch, expected_branch)
    again, _ = beam_decode(model, enc[:, -20:], length, states[-2], options)
    same(again[0], expected)


@pytest.mark.parametrize("settle", [1, 64])
def test_streams_join_and_leave(model, monkeypatch, settle):
    enc, _ = frames(24, 24)
    expected, _ = beam_decode(model, enc, np.array([24, 24]), options=beam())
    monkeypatch.setattr(history, "_SETTLE", settle)
    _, early = beam_decode(model, enc[:1, :8], np.array([8]), options=beam())
    both = BeamState.stack([early, BeamState.init(model, 1, beam())])
    mixed = np.stack([enc[0, 8:24], enc[1, :16]])
    first, both = beam_decode(model, mixed, np.array([16, 16]), both, beam())
    second, _ = beam_decode(model, enc[1:, 16:], np.array([8]), both.unstack()[1], beam())
    same(first[0], expected[0])
    same(second[0], expected[1])


def test_no_frames(model):
    (found,), state = beam_decode(model, np.zeros((1, 0, 32), np.float32), np.array([0]), options=beam())
    assert [(x.tokens, x.score) for x in found] == [([], 0.0)]
    enc, lengths = frames(12)
    expected, _ = beam_decode(model, enc, lengths, options=beam())
    same(beam_decode(model, enc, lengths, state, beam())[0][0], expected[0])


def test_state_is_constant_but_for_the_tokens(model):
    (found,), state = beam_decode(model, *frames(60), options=beam())
    assert len(found[0].tokens) > 10
    assert state.nbytes == BeamState.init(model, 1, beam()).nbytes
    assert state.nbytes == 4 * (4 + 3 * 8 + 4 * (32 + 24 + 24) + 8) + 8 + 8


def test_scores_stay_exact_in_long_streams(model):
    """An hour's log-probability is tens of thousands of nats, of which fp32 would keep two decimals."""
    enc, lengths = frames(16)
    fresh, _ = beam_decode(model, enc, lengths, options=beam())
    _, state = beam_decode(model, frames(4)[0], np.array([4]), options=beam())
    before, _ = beam_decode(model, enc, lengths, state, beam())
    far = state._replace(best=state.best - 1e7)
    after, _ = beam_decode(model, enc, lengths, far, beam())
    assert [x.tokens for x in after[0]] == [x.tokens for x in before[0]]
    assert [x.score + 1e7 for x in after[0]] == pytest.approx([x.score for x in before[0]], abs=1e-6)
    assert fresh[0][0].tokens != before[0][0].tokens


def test_blank_penalty_gives_more_tokens(model):
    enc, lengths = frames(40)
    counts = [len(beam_decode(model, enc, lengths, options=beam(blank_penalty=p))[0][0][0].tokens) for p in (-4, 0, 4)]
    assert counts[0] < counts[1] < counts[2]


def test_what_does_not_fit_is_refused(model):
    enc, lengths = frames(3)
    with pytest.raises(ValueError, match="method must be modified_beam"):
        beam_decode(model, enc, lengths, options=SearchOptions())
    state = BeamState.init(model, 1, beam(4))
    with pytest.raises(ValueError, match="beam must be that of the state, 4, got 2"):
        beam_decode(model, enc, lengths, state, beam(2))
    with pytest.raises(ValueError, match="share one beam, got \\[2, 4\\]"):
        BeamState.stack([state, BeamState.init(model, 1, beam(2))])
    with pytest.raises(ValueError, match="hotwords must be one for each of 2 streams"):
        BeamState.init(model, 2, beam(), hotwords=[None])
    with pytest.raises(ValueError, match=f"hotwords is over 5 tokens but the model has {VOCAB_SIZE}"):
        BeamState.init(model, 1, beam(hotwords=Hotwords((((1, 2), 3.0),), 5)))
