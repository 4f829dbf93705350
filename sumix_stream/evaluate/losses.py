"""The training objective on utterances that are being decoded: without masks, dropout or any change of weights.

B utterances, S samples, U tokens.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

from sumix_stream.config import LossConfig
from sumix_stream.context import ChunkContext
from sumix_stream.data.batch_fbank import BatchFbank
from sumix_stream.data.manifests import Utterance
from sumix_stream.tasks.base import TaskModel, Weights
from sumix_stream.tokenizer import Tokenizer


class HeldOutLoss:
    """Sums the loss of a set of utterances, so that their audio is read once for it and for decoding.

    An utterance that has no loss is passed over: one without a transcript, with what the tokenizer does not know, or
    with more tokens than encoder frames.

    Args:
        model: in evaluation mode.
        context: the one of validation, fixed.
        weights: of the parts; the same at every validation, or the totals could not be compared.
        max_samples: of a batch, padding included.
    """

    def __init__(
        self,
        model: TaskModel,
        tokenizer: Tokenizer,
        context: ChunkContext,
        weights: Weights,
        loss: LossConfig,
        max_samples: int,
    ) -> None:
        self._model, self._tokenizer, self._context = model, tokenizer, context
        self._weights, self._loss, self._max_samples = weights, loss, max_samples
        self._fbank = BatchFbank()
        self._waiting: list[tuple[torch.Tensor, list[int]]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._frames = 0.0

    def watch(self, utterances: Iterable[Utterance]) -> Iterator[Utterance]:
        """The same utterances; the loss of each is added as it goes by."""
        for utterance in utterances:
            self._add(utterance)
            yield utterance
        self._flush()

    def means(self) -> dict[str, float]:
        """In nats for each encoder frame: `loss`, the weighted sum, and its parts; empty without any utterance."""
        return {name: value / self._frames for name, value in self._sums.items()} if self._frames else {}

    def _add(self, utterance: Utterance) -> None:
        tokens = self._tokenizer.encode(utterance.text)
        timebase = self._model.timebase
        frames = timebase.num_encoder_frames(timebase.num_feature_frames(len(utterance.samples)))
        if not tokens or self._tokenizer.unk_id in tokens or len(tokens) > frames:
            return
        longest = max([len(utterance.samples), *(len(samples) for samples, _ in self._waiting)])
        if self._waiting and longest * (len(self._waiting) + 1) > self._max_samples:
            self._flush()
        self._waiting.append((torch.from_numpy(utterance.samples), tokens))

    @torch.no_grad()
    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        samples, tokens = zip(*waiting, strict=True)
        device = next(self._model.parameters()).device
        pad = torch.nn.utils.rnn.pad_sequence
        waveforms, num_samples = pad(samples, batch_first=True), torch.tensor([len(one) for one in samples])
        feats, feat_lengths = self._fbank(waveforms.to(device), num_samples.to(device))
        targets = pad([torch.tensor(one) for one in tokens], batch_first=True).to(device)
        target_lengths = torch.tensor([len(one) for one in tokens], device=device)
        found = self._model(feats, feat_lengths, targets, target_lengths, self._context, self._weights, self._loss)
        frames = float(found.num_frames)
        self._frames += frames
        self._sums["loss"] += float(found.total) * frames
        for name, part in found.parts.items():
            self._sums[name] += float(part.sum())
