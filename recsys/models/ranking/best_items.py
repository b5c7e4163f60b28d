"""The k best items of dot products, exactly, from float32 products.

More than k items are taken by their float32 products and scored again in float64; what was not taken has a float32
product below a border. Where the k-th score does not stand clear of the border by the proven bound (`screen.py`), the
row is told apart, and the caller ranks it by the definition.

Dims: B rows, V items, D width, C cells, G groups of neighbouring items.
"""

import torch
from torch import Tensor

from recsys.models.ranking.screen import Cells, ScreenedItems

GROUP = 32  # neighbouring items, the best of which stands for all
SPARE = 16  # items and groups taken beyond k


def best_items(items: ScreenedItems, states: Tensor, k: int, hidden: Cells) -> tuple[Tensor, Tensor]:
    """Items of the k best scores of each row, best first, equal scores by index; and which rows are proven.

    Args:
        items: the candidates.
        states: (B, D), each with `items.screens(states)`; call it in `full_float32()`.
        k: at least 1.
        hidden: candidates to leave out, by row.

    Returns:
        (B, k) int64 item indices, 0 where fewer candidates are left; and (B,) bool, False where float32 decides too
        little: such a row is to be ranked by all its scores.
    """
    B, places = len(states), len(items.item_ids)
    groups = -(-max(places, 1) // GROUP)
    products = states.new_full((B, groups * GROUP), -torch.inf, dtype=torch.float32)
    for block in items.blocks:
        products[:, block.first : block.first + len(block.vectors)] = states.float() @ block.vectors.T
    place = items.place[hidden.item]
    products[hidden.row[place >= 0], place[place >= 0]] = -torch.inf
    taken, border = _taken(products.view(B, groups, GROUP), k)  # (B, C), (B,)
    row, column = torch.nonzero(products.gather(1, taken) > -torch.inf, as_tuple=True)
    item = torch.zeros_like(taken)
    item[row, column] = items.item_ids[taken[row, column]]
    scores = torch.full(taken.shape, -torch.inf, dtype=torch.float32, device=states.device)
    scores[row, column] = items.exact_scores(states, row, item[row, column])
    best, worst = _in_order(item, scores, k)
    largest = max((block.norm for block in items.blocks), default=0.0)
    reach = border.double() + items.bound(torch.linalg.vector_norm(states.double(), dim=1), largest)
    return best, (border == -torch.inf) | (worst.double() > reach)


def _taken(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places of the greatest products (B, C), and the greatest product of a place not taken (B,)."""
    B, groups, _ = products.shape
    nothing = products.new_full((B,), -torch.inf)
    tops = products.amax(2)  # (B, G)
    chosen = tops.topk(min(k + SPARE + 1, groups), dim=1)
    border, group = nothing, chosen.indices
    if k + SPARE < groups:
        border, group = chosen.values[:, -1], group[:, :-1]
    inside = products.gather(1, group[:, :, None].expand(-1, -1, GROUP)).view(B, -1)
    place = (group[:, :, None] * GROUP + torch.arange(GROUP, device=group.device)).view(B, -1)
    best = inside.topk(min(k + SPARE + 1, inside.shape[1]), dim=1)
    if k + SPARE < inside.shape[1]:
        return place.gather(1, best.indices[:, :-1]), torch.maximum(border, best.values[:, -1])
    return place.gather(1, best.indices), border


def _in_order(item: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best items (B, k), 0 for none, and the k-th score (B,), -inf where fewer are left."""
    item, by_item = item.sort(dim=1)
    scores, by_score = scores.gather(1, by_item).sort(dim=1, descending=True, stable=True)
    item = torch.where(scores > -torch.inf, item.gather(1, by_score), 0)
    best = torch.zeros(len(item), k, dtype=torch.int64, device=item.device)
    best[:, : item.shape[1]] = item[:, :k]
    worst = scores[:, k - 1] if item.shape[1] >= k else scores.new_full((len(item),), -torch.inf)
    return best, worst
