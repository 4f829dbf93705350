"""Joiner: W_o tanh(W_e enc + W_p pred). D encoder, P predictor, J joint channels, V vocabulary."""

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """Logits over the vocabulary from an encoder frame and a predictor output."""

    def __init__(self, encoder_dim: int, predictor_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.project_encoder = nn.Linear(encoder_dim, joiner_dim)
        self.project_predictor = nn.Linear(predictor_dim, joiner_dim, bias=False)
        self.output = nn.Linear(joiner_dim, vocab_size)

    def forward(self, enc: Tensor, pred: Tensor) -> Tensor:
        """enc (..., D) and pred (..., P), broadcast against each other -> (..., V)."""
        return self.join(self.project_encoder(enc), self.project_predictor(pred))

    def join(self, enc_proj: Tensor, pred_proj: Tensor) -> Tensor:
        """The same from projections (..., J), which a search computes once a frame and once a token."""
        return self.output(torch.tanh(enc_proj + pred_proj))
