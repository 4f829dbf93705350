"""LSTM predictor: the transducer's language side. B batch, U tokens, P channels."""

from functools import cache

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
        y, _ = self._lstm(past)
        return self.dropout(y)

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """One more token for each stream, (B,) -> (B, P); begin with `blank_id`."""
        past = tuple(part.transpose(0, 1).contiguous() for part in state)
        y, past = self._lstm(self.embedding(tokens).unsqueeze(1), past)
        return y.squeeze(1), PredictorState(*(part.transpose(0, 1) for part in past))

    def _lstm(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`self.lstm`; on a CPU that lacks one in autocast's type, in fp32."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self.lstm(x, past)
        if torch.get_autocast_dtype("cpu") == torch.bfloat16 and cpu_has_bf16_lstm():
            return self.lstm(x, past)
        with torch.autocast("cpu", enabled=False):
            return self.lstm(x.float(), past and tuple(part.float() for part in past))


@cache
def cpu_has_bf16_lstm() -> bool:
    """Whether torch computes a bf16 LSTM and its gradients on this CPU, found by trying once.

    oneDNN has it for AVX-512 and AMX only, and raises RuntimeError elsewhere; of fp16 it has none to count on.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        lstm = nn.LSTM(16, 16, batch_first=True)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            y, _ = lstm(torch.zeros(1, 2, 16))
            torch.autograd.grad(y.float().sum(), list(lstm.parameters()))
    except RuntimeError:
        return False
    return True
