# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""sampled_loss by Triton: what is allocated and launched.

Rows with negatives of their own take a program each, which gathers their vectors. Rows that share lists are cut into
pieces by their list and meet it in matrix products. No vectors of all rows' negatives are written. The gradient of w is
a `segment_sum`: of the rows of x, each times the derivatives by its logits; or, with shared lists, of what each piece
of rows gives to each slot of its list, and of the rows' part in their targets.

Dims: N rows, G lists of negatives, K negatives a list, V items, D width, P pieces.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from recsys.kernels.launch import launch_of
from recsys.kernels.sampled_loss.pieces import Grouping
from recsys.kernels.sampled_loss.settings import Kind
from recsys.kernels.sampled_loss.triton_bundles import Flags, Inputs, RowStates
from recsys.kernels.sampled_loss.triton_rows import rows_backward_kernel, rows_forward_kernel
from recsys.kernels.sampled_loss.triton_tiles import (
    tiles_backward_w_kernel,
    tiles_backward_x_kernel,
    tiles_forward_kernel,
)
from recsys.kernels.segment_sum import SegmentOrder, segment_sum


class TritonPath:
    """One batch, ready for its forward and its backward kernels."""

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        target: Tensor,
        negatives: Tensor,
        groups: Tensor | None,
        log_q: Tensor | None,
        kind: Kind,
    ) -> None:
        self.dtypes = x.dtype, w.dtype, None if bias is None else bias.dtype
        dtype = torch.promote_types(x.dtype, w.dtype)
        self.x, self.w = x.to(dtype).contiguous(), w.to(dtype).contiguous()
        self.target, self.negatives, self.groups = target.contiguous(), negatives.contiguous(), groups
        self.acc = torch.promote_types(dtype, torch.float32)
        self.has_own = negatives.dim() == 2 and groups is None
        self.flags = Flags.of(self.x, kind, bias is not None, log_q is not None)
        self.given = Inputs(
            x=self.x,
            target=self.target,
            w=self.w,
            bias=self.x if bias is None else bias.contiguous(),
            log_q=self.x if log_q is None else log_q.contiguous(),
            V=len(w),
        )

    def forward(self, beta: float) -> tuple[Tensor, RowStates]:
        """Losses (N,), and the rows' states."""
        losses = torch.full((len(self.x),), float("nan"), dtype=self.acc, device=self.x.device)  # of a wrong group, too
        states = RowStates(losses.clone(), losses.clone(), losses.clone())
        if len(losses) == 0:
            return losses, states
        K = self.negatives.shape[-1]
        if self.has_own:
            launch = self._launch("rows_forward")
            rows_forward_kernel[(len(losses),)](self.given, self.negatives, losses, states, K, BETA=beta, **launch)
            return losses, states
        launch = self._launch("tiles_forward")
        pieces = self._grouping().cut(launch["BLOCK_M"])
        tiles_forward_kernel[(pieces.num_pieces,)](
            self.given, self.negatives, pieces, losses, states, K, BETA=beta, **launch
        )
        return losses, states

    def backward(
        self, weights: Tensor, states: RowStates, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of sum(weights * losses) for x, w and bias, None where not needed."""
        weights = weights.to(self.acc).contiguous()
        dx = None
        if needs[0]:  # a row of a wrong group is in no piece: its gradient is NaN as its loss
            dx = torch.empty_like(self.x) if self.groups is None else torch.full_like(self.x, float("nan"))
        if self.has_own:
            dw, dbias = self._backward_rows(weights, states, dx, needs[1], needs[2])
        else:
            grouping = self._grouping()
            self._backward_x(weights, states, dx, grouping)
            dw, dbias = self._backward_w(weights, states, grouping, needs[1], needs[2])
        return None if dx is None else dx.to(self.dtypes[0]), dw, dbias

    def _backward_rows(
        self, weights: Tensor, states: RowStates, dx: Tensor | None, needs_w: bool, needs_bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        (num_rows, K), V = self.negatives.shape, len(self.w)
        has_coefficients = needs_w or needs_bias
        shape = (num_rows, K + 1) if has_coefficients else (0,)
        coefficients = torch.empty(shape, dtype=self.acc, device=self.x.device)
        if num_rows:
            rows_backward_kernel[(num_rows,)](
                self.given,
                self.negatives,
                weights,
                states,
                self.x if dx is None else dx,
                coefficients,
                K,
                HAS_DX=dx is not None,
                HAS_COEFFICIENTS=has_coefficients,
                **self._launch("rows_backward"),
            )
        if not has_coefficients:
            return None, None
        ids = torch.cat([self.negatives, self.target[:, None]], 1)  # (N, K+1)
        order = SegmentOrder.of(ids, V)
        dw = segment_sum(self.x, ids, V, weights=coefficients, order=order, out_dtype=self.dtypes[1])
        return dw if needs_w else None, self._bias_sum(coefficients, ids, order) if needs_bias else None

    def _backward_x(self, weights: Tensor, states: RowStates, dx: Tensor | None, grouping: Grouping) -> None:
        if dx is None or len(dx) == 0:
            return
        launch, K = self._launch("tiles_backward_x"), self.negatives.shape[-1]
        pieces = grouping.cut(launch["BLOCK_M"])
        tiles_backward_x_kernel[(pieces.num_pieces,)](
            self.given, self.negatives, pieces, weights, states, dx, K, **launch
        )

    def _backward_w(
        self, weights: Tensor, states: RowStates, grouping: Grouping, needs_w: bool, needs_bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        if not (needs_w or needs_bias):
            return None, None
        (V, D), K, launch = self.w.shape, self.negatives.shape[-1], self._launch("tiles_backward_w")
        pieces = grouping.cut(launch.pop("PIECE"))
        dv = torch.empty((pieces.num_pieces * K, D), dtype=self.acc, device=self.x.device)
        dv_bias = torch.empty((pieces.num_pieces * K, 1), dtype=self.acc, device=self.x.device)
        if len(dv):
            tiles_backward_w_kernel[(pieces.num_pieces, triton.cdiv(K, launch["BLOCK_K"]))](
                self.given, self.negatives, pieces, weights, states, dv, dv_bias, K, **launch
            )
        ids = torch.atleast_2d(self.negatives)[pieces.lists].flatten()  # (P K,)
        slots, targets = SegmentOrder.of(ids, V), SegmentOrder.of(self.target, V)
        rate = weights * states.of_target
        dw = dbias = None
        if needs_w:
            dw = segment_sum(dv, ids, V, order=slots)
            dw = segment_sum(self.x, self.target, V, weights=rate, add_to=dw, order=targets, out_dtype=self.dtypes[1])
        if needs_bias:
            dbias = segment_sum(dv_bias, ids, V, order=slots)
            dbias = segment_sum(rate[:, None], self.target, V, add_to=dbias, order=targets)
            dbias = dbias.squeeze(1).to(self.dtypes[2])
        return dw, dbias

    def _bias_sum(self, coefficients: Tensor, ids: Tensor, order: SegmentOrder) -> Tensor:
        ones = coefficients.new_ones((len(ids), 1))
        return segment_sum(ones, ids, len(self.w), weights=coefficients, order=order).squeeze(1).to(self.dtypes[2])

    def _grouping(self) -> Grouping:
        num_lists = len(self.negatives) if self.groups is not None else 1
        return Grouping.of(self.groups, len(self.x), num_lists, self.x.device)

    def _launch(self, kernel: str) -> dict[str, Any]:
        itemsize = self.x.element_size()
        row = launch_of("sampled_loss", kernel, self.x.device, width=self.flags.BLOCK_D, bytes=itemsize)
        return {"FLAGS": self.flags, **row}
