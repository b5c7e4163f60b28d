"""Which scorer to take: the simplest one whose paired distance to the best may be nothing.

Simple means, in this order: popularity, recent popularity, item-kNN, transition-kNN, a blend of counts, EASE, any other
floor; then models by their number of parameters.
"""

from collections.abc import Sequence

from recsys.pipelines.compare.comparison import (
    Advice,
    Contender,
    difference_text,
    interval_text,
    seconds_text,
    size_text,
)

SIMPLEST_FIRST = ("popularity", "recent-popularity", "item-knn", "transition-knn", "blend", "ease")
# An interval that leaves open whether so great a share of the best figure is lost says too little.
TELLING_SHARE = 0.2
FEW_QUESTIONS = 200


def by_simplicity(contenders: Sequence[Contender]) -> list[Contender]:
    """Floors and models, the simplest first; the oracle left out."""
    return sorted((one for one in contenders if one.kind != "oracle"), key=_complexity)


def advise(contenders: Sequence[Contender], best: str, best_floor: str, num_questions: int) -> Advice:
    """What to take and why.

    Args:
        contenders: with their differences to the best and to the best floor.
        best: name of the best floor or model.
        best_floor: name of the best floor.
        num_questions: answered by each.
    """
    ordered = by_simplicity(contenders)
    top = next(one for one in ordered if one.name == best)
    chosen = next(one for one in ordered if one.to_best is None or one.to_best.high >= 0)
    is_telling = num_questions >= FEW_QUESTIONS and (
        chosen.to_best is None or -chosen.to_best.low <= TELLING_SHARE * top.ndcg.mean
    )
    text = [_choice(chosen, top)]
    if chosen.name == SIMPLEST_FIRST[0]:
        text.append(_without_history(chosen))
    text += _against_floor(ordered, best_floor)
    if not is_telling:
        text.append(_too_small(chosen, num_questions))
    return Advice(take=chosen.name, text=tuple(text), is_telling=is_telling)


def _complexity(one: Contender) -> tuple[int, int]:
    if one.kind == "floor":
        place = SIMPLEST_FIRST.index(one.name) if one.name in SIMPLEST_FIRST else len(SIMPLEST_FIRST)
        return place, 0
    return len(SIMPLEST_FIRST) + 1, one.cost.parameters if one.cost is not None else 0


def _choice(chosen: Contender, top: Contender) -> str:
    figure = f"take {chosen.name}: NDCG@10 {interval_text(chosen.ndcg)}"
    if chosen.to_best is None:
        return f"{figure}, the best of all, and nothing simpler comes within the noise of it{_price(chosen)}"
    best = f"the best, {top.name}, has {interval_text(top.ndcg)}"
    difference = f"the difference {difference_text(chosen.to_best)} may be nothing"
    return f"{figure}; {best}, and {difference}{_price(chosen)}; {top.name} costs{_cost_words(top)}"


def _without_history(chosen: Contender) -> str:
    relation = "is better than" if chosen.to_best is None else "can be told from"
    return f"nothing here {relation} {chosen.name}: no scorer uses the history to effect"


def _against_floor(ordered: Sequence[Contender], best_floor: str) -> list[str]:
    lines = []
    for one in ordered:
        if one.kind != "model" or one.to_floor is None:
            continue
        if one.to_floor.high < 0:
            distance = f"{difference_text(one.to_floor)} against {best_floor}"
            lines.append(f"{one.name} is beaten by counting: {distance}, at this budget")
        elif one.to_floor.low <= 0:
            lines.append(
                f"{one.name} can not be told from counting: {difference_text(one.to_floor)} against {best_floor}"
            )
    return lines


def _too_small(chosen: Contender, num_questions: int) -> str:
    if chosen.to_best is None or num_questions < FEW_QUESTIONS:
        return (
            f"the data is too small to tell for sure: {num_questions} questions; from {FEW_QUESTIONS} on the intervals "
            "begin to say something"
        )
    return (
        f"the data is too small to tell for sure: {chosen.name} may be as much as {-chosen.to_best.low:.4f} worse than "
        f"the best; more users in the test part would narrow that ({num_questions} now)"
    )


def _price(one: Contender) -> str:
    return f"; it costs{_cost_words(one)}"


def _cost_words(one: Contender) -> str:
    if one.cost is None:
        return " nothing that was measured"
    verb = "train" if one.kind == "model" else "count"
    seconds = "" if one.training_s is None else f", {seconds_text(one.training_s)} to {verb}"
    ms = f"{one.cost.median_ms:.2f} ms an answer (p99 {one.cost.p99_ms:.2f})"
    return f" {size_text(one.cost.size_bytes)}, {ms}{seconds}"
