"""A bundle run as plainly as can be, whatever its format: what a decoder makes of it is compared with this.

T0 feature frames, T encoder frames, D encoder channels.
"""

from collections.abc import Sequence

import numpy as np

from sumix_stream.runtime.bundle import Bundle

MAX_SYMBOLS = 5  # tokens a frame may emit in `greedy`


def encode_streams(bundle: Bundle, utterances: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Features (T0, 80) of utterances -> encoder frames (T, D) of each.

    They run as live streams do: stream i begins i steps after the first, so that every batch is of mixed ages, and
    leaves it with a short last chunk.
    """
    states = [bundle.encoder_state(1) for _ in utterances]
    found: list[list[np.ndarray]] = [[] for _ in utterances]
    begun = [0] * len(utterances)  # feature frames given so far
    now = 0
    while any(done < len(feats) for done, feats in zip(begun, utterances)):
        rows = [i for i, feats in enumerate(utterances) if i <= now and begun[i] < len(feats)]
        now += 1
        if not rows:
            continue
        chunks = [utterances[i][begun[i] : begun[i] + bundle.window] for i in rows]
        feats = np.zeros((len(rows), bundle.window, chunks[0].shape[1]), np.float32)
        for row, chunk in zip(feats, chunks):
            row[: len(chunk)] = chunk
        state = [np.concatenate(parts) for parts in zip(*(states[i] for i in rows))]
        frames, lengths, state = bundle.encode(feats, np.array([len(chunk) for chunk in chunks]), state)
        for row, i in enumerate(rows):
            found[i].append(frames[row, : lengths[row]])
            states[i] = [part[row : row + 1] for part in state]
            begun[i] += len(chunks[row])
    return [np.concatenate(parts) if parts else np.zeros((0, 0), np.float32) for parts in found]


def greedy(bundle: Bundle, utterances: Sequence[np.ndarray], max_symbols: int = MAX_SYMBOLS) -> list[list[int]]:
    """Encoder frames (T, D) of utterances -> the model's tokens, the most probable one frame after frame.

    Written as plainly as can be, since it is what the decoder's fast search is compared with.
    """
    num_streams = len(utterances)
    tokens: list[list[int]] = [[] for _ in utterances]
    blanks = np.full(num_streams, bundle.blank_id)
    predicted, state = bundle.predict(blanks, bundle.predictor_state(num_streams))
    for t in range(max(map(len, utterances), default=0)):
        rows = np.array([i for i, frames in enumerate(utterances) if t < len(frames)])
        for _ in range(max_symbols):
            logits = bundle.join(np.stack([utterances[i][t] for i in rows]), predicted[rows])
            best = logits.argmax(-1)
            rows, best = rows[best != bundle.blank_id], best[best != bundle.blank_id]
            if not len(rows):
                break
            for i, token in zip(rows, best):
                tokens[i].append((int(token) + bundle.offset) % logits.shape[-1])
            predicted[rows], after = bundle.predict(best, [part[rows] for part in state])
            for part, new in zip(state, after):
                part[rows] = new
    return tokens
