"""LSTM predictor: the transducer's language side. B batch, U tokens, P channels."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sumix_stream.config import PredictorConfig
from sumix_stream.encoders.states import PredictorState


class LstmPredictor(nn.Module):
    """Embedding and LSTM over the tokens emitted so far; blank is the start symbol.

    `token_dropout` hides whole tokens in training (word dropout, arXiv 1511.06349). A transducer can emit a word once
    by muting it while the predictor remembers it, or guess words from their history; both lose words that are spoken
    (the second of FIVE FIVE), and neither works on a history with gaps.
    """

    def __init__(self, config: PredictorConfig, vocab_size: int, blank_id: int = 0) -> None:
        super().__init__()
        self.blank_id = blank_id
        self.embedding = nn.Embedding(vocab_size, config.embed_dim)
        self.lstm = nn.LSTM(config.embed_dim, config.hidden_dim, config.num_layers, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.token_dropout = config.token_dropout

    @property
    def dim(self) -> int:
        return self.lstm.hidden_size

    def init_state(self, batch_size: int) -> PredictorState:
        return PredictorState.init(batch_size, self.lstm.num_layers, self.dim, self.embedding.weight.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, U) -> (B, U + 1, P): row u has seen the start symbol and the first u tokens."""
        start = tokens.new_full((tokens.shape[0], 1), self.blank_id)
        past = self.embedding(torch.cat([start, tokens], dim=1))
        if self.training and self.token_dropout:
            hidden = torch.rand(past.shape[:2], device=past.device) < self.token_dropout
            past = past.masked_fill(hidden.unsqueeze(2), 0.0)
        past = self.dropout(past)
        # torch has no fp16 LSTM for the CPU: there this layer alone stays in fp32
        in_fp32 = past.device.type == "cpu" and torch.get_autocast_dtype("cpu") == torch.float16
        with torch.autocast("cpu", enabled=False) if in_fp32 else nullcontext():
            y, _ = self.lstm(past)
        return self.dropout(y)

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """One more token for each stream, (B,) -> (B, P); begin with `blank_id`."""
        past = tuple(part.transpose(0, 1).contiguous() for part in state)
        y, past = self.lstm(self.embedding(tokens).unsqueeze(1), past)
        return y.squeeze(1), PredictorState(*(part.transpose(0, 1) for part in past))
