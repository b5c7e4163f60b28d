"""The jagged Transformer encoder under SASRec and BERT4Rec.

    post: x = LN(x + f(x));  pre: x = x + f(LN(x)), and a last LN.   f: self-attention, then W2 act(W1 x).
    ligr: x = x + sigmoid(W x) f(LN(x)), and a last LN.              f: self-attention, then W2 (silu(W1 x) * W3 x).

Paper: Vaswani et al. 2017, arXiv:1706.03762; pre-norm: Xiong et al. 2020, arXiv:2002.04745; LiGR: Borisyuk et al. 2025,
arXiv:2502.03417, in the form of eSASRec, RecSys 2025, arXiv:2508.06450.
Differs: no padding anywhere; T tokens of all sequences lie one after another.

Dims: T tokens, B sequences, L positions, D width, H heads.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.kernels.attention.op import jagged_attention
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.jagged_embedding import jagged_embedding
from recsys.models.dropout import Dropout

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of the encoder."""

    d_model: int = 64
    num_layers: int = 2
    num_heads: int = 2
    d_ff: int = 256
    dropout: float = 0.2
    attention_dropout: float = 0.0
    norm: Literal["pre", "post"] = "pre"
    scale_inputs: bool = False  # token vectors times sqrt(d_model) before positions are added; Vaswani et al., 3.4
    positions: Literal["recency", "absolute"] = "recency"  # counted from the last item, or from the first
    activation: Literal["gelu", "relu"] = "gelu"  # of the transformer block
    block: Literal["transformer", "ligr"] = "transformer"
    norm_eps: float = 1e-5  # added to the variance in every LayerNorm
    init: Literal["normal", "truncated"] = "normal"  # of every matrix, std .02; truncated at two of it

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "num_heads", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model={self.d_model} must be a multiple of num_heads={self.num_heads}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if not 0.0 < self.norm_eps < 1.0:
            raise ValueError(f"norm_eps={self.norm_eps} must be in (0, 1)")
        if self.block == "ligr" and (self.norm, self.activation) != ("pre", "gelu"):
            raise ValueError(
                f"norm={self.norm}, activation={self.activation} with block=ligr, which is pre-norm with SwiGLU; "
                "leave both at their defaults"
            )


class Encoder(nn.Module):
    """Maps token vectors (T, D) to states (T, D); tokens see their own sequence only."""

    def __init__(self, config: EncoderConfig, *, max_len: int, causal: bool) -> None:
        super().__init__()
        self.config, self.max_len, self.causal = config, max_len, causal
        self.position = nn.Embedding(max_len, config.d_model)
        block = LiGRBlock if config.block == "ligr" else Block
        self.blocks = nn.ModuleList(block(config, causal=causal) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """States (T, D) of token vectors `x` (T, D).

        Args:
            x: (T, D) float, sequences one after another.
            lengths: (B,) tokens of each sequence, on the host; none exceeds `max_len`.
            generator: CPU generator, for the seed of the attention dropout; needed in training only.

        Raises:
            ValueError: a sequence is longer than `max_len`.
        """
        x, meta = self._embed(x, lengths)
        for block in self.blocks:
            x = block(x, meta, generator)
        return self.norm(x) if self.config.norm == "pre" else x

    def last_states(self, x: Tensor, lengths: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """(B, D): what `forward` gives for the last token of each sequence; the last block is run for these alone.

        Args:
            x, lengths, generator: as in `forward`; no sequence is empty.

        Raises:
            ValueError: a sequence is empty or longer than `max_len`.
        """
        if 0 in lengths:
            raise ValueError(f"sequence {lengths.index(0)} is empty; a state stands after an item")
        last = torch.from_numpy(np.cumsum(lengths, dtype=np.int64) - 1).to(x.device, non_blocking=True)
        return self._with_last_block_at(x, lengths, last, np.ones(len(lengths), dtype=np.int64), generator)

    def states_at(
        self, x: Tensor, lengths: tuple[int, ...], places: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(N, D): what `forward` gives for the tokens at `places`; the last block is run for these alone.

        Args:
            x, lengths, generator: as in `forward`.
            places: (N,) int64 on the host, ascending: rows of `x`.

        Raises:
            ValueError: the encoder is causal, where every token sees other keys; or a sequence exceeds `max_len`.
        """
        if self.causal:
            raise ValueError("states_at is for an encoder that sees both ways; take forward, or last_states")
        sequence = np.searchsorted(np.cumsum(lengths), places.numpy(), side="right")
        counts = np.bincount(sequence, minlength=len(lengths))
        return self._with_last_block_at(x, lengths, places.to(x.device, non_blocking=True), counts, generator)

    def _with_last_block_at(
        self,
        x: Tensor,
        lengths: tuple[int, ...],
        rows: Tensor,
        counts: npt.NDArray[np.int64],
        generator: torch.Generator | None,
    ) -> Tensor:
        x, meta = self._embed(x, lengths)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, meta, generator)
        assert isinstance(last, Block)
        x = last.rows_of(x, meta, rows, JaggedMeta.from_lengths(counts, device=x.device), generator)  # (N, D)
        return self.norm(x) if self.config.norm == "pre" else x

    def _embed(self, x: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, JaggedMeta]:
        if max(lengths, default=0) > self.max_len:
            raise ValueError(
                f"a sequence of {max(lengths)} tokens exceeds max_len={self.max_len}; cut it to the last ones"
            )
        if self.config.scale_inputs:
            x = x * math.sqrt(self.config.d_model)
        positions = _position_ids(lengths, self.config.positions).to(x.device, non_blocking=True)
        x = x + jagged_embedding(self.position.weight, positions)  # (T, D)
        x = self.dropout(self.norm(x) if self.config.norm == "post" else x)
        return x, JaggedMeta.from_lengths(lengths, device=x.device)


class Block(nn.Module):
    """One layer: self-attention and a feed-forward net, each with a residual path."""

    def __init__(self, config: EncoderConfig, *, causal: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)
        self.norm_attention = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.norm_ff = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, meta: JaggedMeta, generator: torch.Generator | None) -> Tensor:
        if self.config.norm == "pre":
            return self._after_attention(x, self._attend(self.norm_attention(x), meta, generator))
        return self._after_attention(x, self._attend(x, meta, generator))

    def rows_of(
        self, x: Tensor, meta: JaggedMeta, rows: Tensor, meta_rows: JaggedMeta, generator: torch.Generator | None
    ) -> Tensor:
        """(N, D): what `forward` gives for the tokens `rows`, of which each sees the whole of its sequence.

        Args:
            x: (T, D), the tokens of all sequences.
            rows: (N,) int64, ascending.
            meta_rows: how many of `rows` each sequence has.
        """
        normed = self.norm_attention(x) if self.config.norm == "pre" else x
        return self._after_attention(x[rows], self._attend_from(normed, meta, rows, meta_rows, generator))

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        if self.config.norm == "pre":
            x = x + self.dropout(attended)
            return x + self.dropout(self._feed_forward(self.norm_ff(x)))
        x = self.norm_attention(x + self.dropout(attended))
        return self.norm_ff(x + self.dropout(self._feed_forward(x)))

    def _attend(self, x: Tensor, meta: JaggedMeta, generator: torch.Generator | None) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.config.num_heads, -1).unbind(1)  # each (T, H, D/H)
        dropout_p, seed = self._attention_dropout(generator)
        attended = jagged_attention(q, k, v, meta, causal=self.causal, dropout_p=dropout_p, seed=seed)
        return self.out(attended.reshape(x.shape))

    def _attend_from(
        self, x: Tensor, meta: JaggedMeta, rows: Tensor, meta_rows: JaggedMeta, generator: torch.Generator | None
    ) -> Tensor:
        D, heads = x.shape[1], self.config.num_heads
        q = F.linear(x[rows], self.qkv.weight[:D], self.qkv.bias[:D]).view(len(rows), heads, -1)  # (N, H, D/H)
        k, v = F.linear(x, self.qkv.weight[D:], self.qkv.bias[D:]).view(len(x), 2, heads, -1).unbind(1)
        dropout_p, seed = self._attention_dropout(generator)
        attended = jagged_attention(q, k, v, meta_rows, meta, dropout_p=dropout_p, seed=seed)
        return self.out(attended.reshape(len(rows), D))

    def _attention_dropout(self, generator: torch.Generator | None) -> tuple[float, int | None]:
        dropout_p = self.config.attention_dropout if self.training else 0.0
        return dropout_p, int(torch.randint(2**31 - 1, (), generator=generator)) if dropout_p else None

    def _feed_forward(self, x: Tensor) -> Tensor:
        up = self.up(x)  # (T, d_ff)
        return self.down(F.gelu(up) if self.config.activation == "gelu" else F.relu(up))


class LiGRBlock(Block):
    """One layer with gated residual paths; the feed-forward net is SwiGLU without bias."""

    def __init__(self, config: EncoderConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.gate_attention = nn.Linear(config.d_model, config.d_model)
        self.gate_ff = nn.Linear(config.d_model, config.d_model)

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + torch.sigmoid(self.gate_attention(x)) * self.dropout(attended)
        return x + torch.sigmoid(self.gate_ff(x)) * self.dropout(self._feed_forward(self.norm_ff(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)  # each (T, d_ff)
        return self.down(F.silu(gate) * up)


def init_weights(module: nn.Module, kind: Literal["normal", "truncated"] = "normal") -> None:
    """Normal(0, .02) for every matrix, 0 for biases and the padding row. Use: `model.apply(init_weights)`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        draw_weights(module.weight, kind)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


def draw_weights(weight: Tensor, kind: Literal["normal", "truncated"]) -> None:
    """Fill `weight` from Normal(0, .02), as it is or with every draw beyond two deviations drawn again."""
    if kind == "truncated":
        nn.init.trunc_normal_(weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
    else:
        nn.init.normal_(weight, std=INIT_STD)


def _position_ids(lengths: tuple[int, ...], kind: str) -> Tensor:
    length = np.array(lengths, dtype=np.int64)
    end = np.cumsum(length)
    token = np.arange(end[-1] if len(end) else 0)
    if kind == "absolute":
        return torch.from_numpy(token - np.repeat(end - length, length))
    return torch.from_numpy(np.repeat(end, length) - 1 - token)
