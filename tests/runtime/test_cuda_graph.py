"""Streams in slots: equal to streams by themselves, whoever else is there and whether or not they move."""

import pytest
import torch
from talkative import MIXERS, sound, talkative_model

from sumix_stream.context import ChunkContext
from sumix_stream.encoders import states
from sumix_stream.features import whole_fbank
from sumix_stream.runtime.cuda_graph import EncoderSlots

CONTEXT = ChunkContext(8, 2)


def feats_of(seconds, seed=0):
    return torch.from_numpy(whole_fbank(sound(seconds, seed=seed)))


def alone(encoder, feats):
    """Encoder frames of one stream by itself, and its last state."""
    window, state, outs = encoder.window(CONTEXT), encoder.init_state(1, CONTEXT), []
    for begin in range(0, len(feats), window):
        chunk = feats[begin : begin + window]
        out, lengths, state = encoder.step(chunk[None], torch.tensor([len(chunk)]), state, final=True)
        outs.append(out[0, : lengths[0]])
    return torch.cat(outs), state


@torch.inference_mode()
def check_streams_in_slots(encoder, slots, utterances, pauses):
    """Streams come and go in three slots, waiting where `pauses` says; all must be as they are alone."""
    window, device = encoder.window(CONTEXT), next(encoder.parameters()).device
    places, waiting, outs, turn = {}, list(range(len(utterances))), [[] for _ in utterances], 0
    while waiting or places:
        for slot in range(slots.num_slots):
            if slot not in places and waiting:
                places[slot] = (waiting.pop(0), 0)
                slots.reset([slot])
        feats = torch.full((slots.num_slots, window, 80), torch.nan)
        lengths, final = torch.zeros(slots.num_slots, dtype=torch.int64), torch.zeros(slots.num_slots, dtype=torch.bool)
        for slot, (number, begin) in list(places.items()):
            if (number + turn) % pauses == 0:
                continue
            chunk = utterances[number][begin : begin + window]
            feats[slot, : len(chunk)], lengths[slot] = chunk, len(chunk)
            final[slot] = begin + window >= len(utterances[number])
        found, found_lengths = slots.step(feats.to(device), lengths, final)
        for slot, (number, begin) in list(places.items()):
            assert (found_lengths[slot] > 0) == (lengths[slot] > 0)
            outs[number].append(found[slot, : found_lengths[slot]].cpu().clone())
            if lengths[slot]:
                places[slot] = (number, begin + window)
            if final[slot]:
                del places[slot]
        turn += 1
    return [torch.cat(out) for out in outs]


@pytest.mark.parametrize("mixer", MIXERS)
def test_streams_in_slots_equal_streams_alone(mixer):
    encoder = talkative_model(mixer).encoder
    utterances = [feats_of(seconds, seed=i) for i, seconds in enumerate((2.1, 0.4, 1.3, 3.0, 0.05))]
    slots = EncoderSlots(encoder, CONTEXT, 3)
    with torch.inference_mode():
        expected = [alone(encoder, feats)[0] for feats in utterances]
    for found, wanted in zip(check_streams_in_slots(encoder, slots, utterances, pauses=3), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("mixer", MIXERS)
def test_cuda_graph_equals_streams_alone(mixer):
    from copy import deepcopy

    encoder = talkative_model(mixer).encoder
    utterances = [feats_of(seconds, seed=i) for i, seconds in enumerate((2.1, 0.4, 1.3, 3.0, 0.05))]
    with torch.inference_mode():
        expected = [alone(encoder, feats)[0] for feats in utterances]
    on_gpu = deepcopy(encoder).cuda()
    slots = EncoderSlots(on_gpu, CONTEXT, 3, cuda_graph=True)
    for found, wanted in zip(check_streams_in_slots(on_gpu, slots, utterances, pauses=3), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_stream_moves_between_slots():
    encoder = talkative_model().encoder
    feats, window = feats_of(1.28), encoder.window(CONTEXT)
    expected, last = alone(encoder, feats[: 3 * window])
    slots, others = EncoderSlots(encoder, CONTEXT, 2), EncoderSlots(encoder, CONTEXT, 4)
    outs = []
    for turn, (home, slot) in enumerate([(slots, 1), (others, 3), (slots, 0)]):
        if turn:
            home.load(slot, state)  # noqa: F821  of the turn before
        batch, lengths = torch.zeros(home.num_slots, window, 80), torch.zeros(home.num_slots, dtype=torch.int64)
        batch[slot], lengths[slot] = feats[turn * window : (turn + 1) * window], window
        out, out_lengths = home.step(batch, lengths)
        outs.append(out[slot, : out_lengths[slot]].clone())
        state = home.state(slot)
    torch.testing.assert_close(torch.cat(outs), expected, atol=2e-5, rtol=0)
    for mine, theirs in zip(states.tensors(state), states.tensors(last), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)


def test_refuses():
    model = talkative_model()
    encoder = model.encoder
    with pytest.raises(ValueError, match="streaming needs one chunk size"):
        EncoderSlots(encoder, ChunkContext.full(), 2)
    with pytest.raises(ValueError, match="num_slots must be at least 1, got 0"):
        EncoderSlots(encoder, CONTEXT, 0)
    slots, window = EncoderSlots(encoder, CONTEXT, 2), encoder.window(CONTEXT)
    feats = torch.zeros(2, window, 80)
    with pytest.raises(ValueError, match=r"feats and lengths must be \(2, 32, 80\) and \(2,\), got"):
        slots.step(feats[:1], torch.tensor([window]))
    with pytest.raises(ValueError, match="or less where final, got"):
        slots.step(feats, torch.tensor([window, 3]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"slot must be in 0..1, got 2"):
        slots.reset([2])
    with pytest.raises(ValueError, match="the slots are of context"):
        slots.load(0, encoder.init_state(1, ChunkContext(8, 3)))
    with pytest.raises(ValueError, match="state grows under context"):
        growing = EncoderSlots(talkative_model("attention").encoder, ChunkContext(8, None), 2)
        growing.step(feats, torch.tensor([window, 0]))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda_graph=True needs an encoder on a CUDA device"):
            EncoderSlots(encoder, CONTEXT, 2, cuda_graph=True)


def test_refuses_an_encoder_in_training():
    encoder = talkative_model(seed=3).encoder
    encoder.train()
    try:
        with pytest.raises(ValueError, match=r"in training mode.*call eval\(\) first"):
            EncoderSlots(encoder, CONTEXT, 2)
    finally:
        encoder.eval()
