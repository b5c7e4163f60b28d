from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from recsys.kernels.jagged_embedding import jagged_embedding, jagged_embedding_reference


def _inputs(T: int, V: int, P: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    w, pos = (torch.randn(size, D, generator=generator, dtype=torch.float64).to(dtype) for size in (V, P))
    ids, positions = (torch.randint(0, size, (T,), generator=generator) for size in (V, P))
    return w.requires_grad_(), ids, pos.requires_grad_(), positions


@settings(max_examples=80, deadline=None)
@given(
    T=st.sampled_from([0, 1, 17, 63, 1000]),
    V=st.sampled_from([1, 5, 200]),
    P=st.sampled_from([1, 50]),
    D=st.sampled_from([1, 8, 50]),
    has_positions=st.booleans(),
    scale=st.sampled_from([1.0, 0.125, 8.0]),
    dropout_p=st.sampled_from([0.0, 0.2, 0.9]),
    padding_idx=st.sampled_from([None, 0]),
    seed=st.integers(0, 2**40),
)
def test_it_equals_its_definition_in_value_and_gradient(
    T: int,
    V: int,
    P: int,
    D: int,
    has_positions: bool,
    scale: float,
    dropout_p: float,
    padding_idx: int | None,
    seed: int,
) -> None:
    w, ids, pos, positions = _inputs(T, V, P, D, seed % 100)
    arguments: dict[str, Any] = {"scale": scale, "dropout_p": dropout_p, "seed": seed, "padding_idx": padding_idx}
    if has_positions:
        arguments |= {"pos": pos, "positions": positions}
    leaves = (w, pos) if has_positions else (w,)
    share = torch.randn(T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (run(w, ids, **arguments) for run in (jagged_embedding, jagged_embedding_reference))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = zip(torch.autograd.grad(found, leaves, share), torch.autograd.grad(expected, leaves, share), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    w, ids, pos, positions = _inputs(7, 4, 3, 5)

    def run(w: Tensor, pos: Tensor) -> Tensor:
        return jagged_embedding(w, ids, pos=pos, positions=positions, scale=2.0, dropout_p=0.4, seed=3)

    assert torch.autograd.gradcheck(run, (w, pos))


def test_it_is_bitwise_what_embeddings_a_product_and_a_sum_give() -> None:
    w, ids, pos, positions = _inputs(1000, 300, 20, 64, dtype=torch.float32)
    items, places = nn.Embedding(300, 64, padding_idx=0, _weight=w), nn.Embedding(20, 64, _weight=pos)
    share = torch.randn(1000, 64)
    modules = items(ids) * 8.0 + places(positions)
    found = jagged_embedding(w, ids, pos=pos, positions=positions, scale=8.0, padding_idx=0)
    assert torch.equal(found, modules)
    wanted = torch.autograd.grad(modules, (items.weight, places.weight), share)
    for a, b in zip(torch.autograd.grad(found, (w, pos), share), wanted, strict=True):
        assert torch.equal(a, b)


def test_the_number_of_threads_changes_no_bit() -> None:
    w, ids, pos, positions = _inputs(4000, 100, 20, 64, dtype=torch.float32)
    share, threads, found = torch.randn(4000, 64), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out = jagged_embedding(w, ids, pos=pos, positions=positions, dropout_p=0.2, seed=5)
            found.append((out.detach(), *torch.autograd.grad(out, (w, pos), share)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_dropout_takes_its_share_and_keeps_the_mean() -> None:
    w = torch.ones(1, 64)
    out = jagged_embedding(w, torch.zeros(5000, dtype=torch.int64), dropout_p=0.2, seed=11)
    assert float((out == 0).float().mean()) == pytest.approx(0.2, abs=0.004)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.005)
    assert float(out.max()) == pytest.approx(1.25)
    by_column, by_token = (out == 0).float().mean(0), (out == 0).float().mean(1)
    assert float((by_column - 0.2).abs().max()) < 0.04
    assert float(by_token.std()) == pytest.approx((0.2 * 0.8 / 64) ** 0.5, rel=0.1)


def test_another_seed_drops_other_values() -> None:
    w = torch.ones(1, 32)
    ids = torch.zeros(100, dtype=torch.int64)
    first, again, other = (jagged_embedding(w, ids, dropout_p=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert 0.4 < float((first != other).float().mean()) < 0.6


def test_narrow_tables_get_gradients_of_their_own_dtype_summed_wide() -> None:
    w = torch.zeros(1, 4, dtype=torch.bfloat16, requires_grad=True)
    out = jagged_embedding(w, torch.zeros(4_096, dtype=torch.int64))
    (grad,) = torch.autograd.grad(out, w, torch.ones_like(out))
    assert grad.dtype == torch.bfloat16
    assert bool((grad == 4_096).all())


def test_one_graph_for_all_batches_once_their_sizes_are_known_to_change() -> None:
    def run(w: Tensor, pos: Tensor, ids: Tensor, positions: Tensor, seed: int) -> Tensor:
        return jagged_embedding(w, ids, pos=pos, positions=positions, scale=2.0, dropout_p=0.3, seed=seed)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for step in range(6):
        w, ids, pos, positions = _inputs(5 + 7 * step, 9, 6, 4, step)
        found, expected = (f(w, pos, ids, positions, 100 + step) for f in (compiled, run))
        assert torch.equal(found, expected)
        share = torch.randn(found.shape, dtype=found.dtype)
        pairs = (torch.autograd.grad(out, (w, pos), share) for out in (found, expected))
        for a, b in zip(*pairs, strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count <= 2


def test_the_custom_ops_keep_their_promises() -> None:
    w, ids, pos, positions = _inputs(9, 5, 4, 6)
    op = torch.ops.recsys.jagged_embedding.default
    torch.library.opcheck(op, (w, pos, ids, positions, 2.0, 0.3, 7, 0))
    torch.library.opcheck(op, (w, None, ids, None, 1.0, 0.0, 0, -1))


def test_the_path_may_be_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    w, ids, pos, positions = _inputs(9, 5, 4, 6)
    arguments: dict[str, Any] = {"pos": pos, "positions": positions, "dropout_p": 0.3, "seed": 1}
    assert torch.equal(jagged_embedding(w, ids, **arguments), jagged_embedding_reference(w, ids, **arguments))


GOOD: dict[str, Any] = {
    "w": torch.zeros(4, 2),
    "ids": torch.tensor([0, 3, 1]),
    "pos": torch.zeros(5, 2),
    "positions": torch.tensor([0, 4, 1]),
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"w": torch.zeros(4)}, r"w has the shape \(4,\) and torch.float32; wanted \(V, D\) of a floating dtype"),
    ({"pos": torch.zeros(5, 2).long()}, r"pos has the shape \(5, 2\) and torch.int64; wanted \(P, D\)"),
    ({"ids": torch.zeros(3)}, r"ids has the shape \(3,\) and torch.float32; wanted \(T,\) of torch.int64"),
    ({"positions": torch.tensor([0, 1])}, "positions has T=2, ids has T=3; they must be equal"),
    ({"positions": None}, "pos is given, positions is None; give both or neither"),
    ({"pos": None}, "positions is given, pos is None; give both or neither"),
    ({"pos": torch.zeros(5, 3)}, "pos has D=3 and torch.float32, w has D=2 and torch.float32; they must be equal"),
    ({"ids": torch.tensor([0, 4, 1])}, r"ids\[1\]=4; wanted 0 to 3"),
    ({"ids": torch.tensor([0, 3, -1])}, r"ids\[2\]=-1; wanted 0 to 3"),
    ({"positions": torch.tensor([0, 5, 1])}, r"positions\[1\]=5; wanted 0 to 4"),
    ({"pos": torch.zeros(5, 2, device="meta")}, "w is on cpu, pos is on meta; they must be equal"),
    ({"dropout_p": 1.0, "seed": 1}, "dropout_p=1.0; wanted at least 0, below 1"),
    ({"dropout_p": 0.1}, "dropout_p=0.1, seed=None; give a seed, one for each step"),
    ({"padding_idx": 4}, "padding_idx=4; wanted 0 to 3, a row of w"),
    ({"dropout_p": 0.1, "seed": 2**63}, "seed=9223372036854775808; wanted an int from 0 to"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_wrong_argument_is_refused_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jagged_embedding(**{**GOOD, **arguments})


def test_the_good_arguments_of_that_test_are_good() -> None:
    assert jagged_embedding(**GOOD).shape == (3, 2)
