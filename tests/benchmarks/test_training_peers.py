from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks.peers.matched import matched
from benchmarks.peers.ours import EpochClock
from benchmarks.peers.runners.recbole_train import TimedSteps
from benchmarks.support.history_table import history_table
from benchmarks.support.listed_ranks import listed_ranks
from benchmarks.training_peers import median_speed, ratios, speed_of
from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.models import registry
from recsys.pipelines.run_config import TrainConfig


@pytest.mark.parametrize(("model", "feed_forward", "extra"), [("sasrec", 64, 1), ("bert4rec", 256, 0)])
def test_our_config_has_the_peers_shape_and_reads_their_events(model: Any, feed_forward: int, extra: int) -> None:
    settings = matched("ml-1m", model)
    config = configs.load(TrainConfig, settings.ours(Path("data"), epochs=4, precision="fp32"))
    built: Any = registry.build(model, config.model_config, 10)
    assert built.encoder.blocks[0].up.out_features == settings.feed_forward == feed_forward
    assert built.config.attention_dropout == built.config.dropout == settings.dropout
    assert built.train_len == settings.window == 200 + extra
    assert config.train.sequences_per_batch == 256
    assert config.train.tokens_per_batch == 256 * settings.window  # never the bound that ends a batch
    assert (config.train.epochs, config.train.patience, config.train.validate_every) == (4, None, 4)


def test_bert4rec_masks_the_share_that_the_peers_mask_and_no_last_items() -> None:
    config = matched("amazon-beauty", "bert4rec", mask_prob=0.35).ours(Path("data"), epochs=1, precision="fp32")
    assert (config["model"]["mask_share"], config["model"]["last_item_share"]) == (0.35, 0.0)
    assert config["model"]["max_len"] == 50


def test_an_epoch_lasts_from_the_event_before_its_first_step_to_its_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    at = iter([0.0, 1.0, 2.0, 5.0, 6.0, 9.0, 10.0])
    monkeypatch.setattr("benchmarks.peers.ours.time.perf_counter", lambda: next(at))
    clock = EpochClock()
    clock.observe({"event": "start", "tokens_per_epoch": 12})
    for event in ({"epoch": 0}, {"epoch": 0}, None, {"epoch": 1}, None):
        clock.observe({"event": "checkpoint"} if event is None else {"event": "step", **event})
    assert clock.seconds() == [4.0, 3.0]
    assert clock.events == 12


class _Batch:
    """As much of RecBole's Interaction as the clock reads."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def __getitem__(self, name: str) -> np.ndarray:
        assert name == "item_length"
        return self.lengths

    def __len__(self) -> int:
        return len(self.lengths)


class _Loader:
    def __iter__(self) -> Iterator[_Batch]:
        return iter([_Batch([1, 2]), _Batch([3, 4]), _Batch([5])])


def test_recbole_runs_its_steps_over_epochs_and_counts_events_of_the_timed_ones_alone() -> None:
    steps = TimedSteps(_Loader(), warmup=2, steps=3, extra=1)
    assert [list(batch.lengths) for batch in steps] == [[1, 2], [3, 4], [5], [1, 2], [3, 4]]
    assert steps.events == (5 + 1) + (3 + 2) + (7 + 2)
    assert steps.seconds > 0


def test_speed_leaves_our_first_epoch_out_and_divides_the_peers_timed_events() -> None:
    ours = speed_of("ours-fp32", {"epoch_s": [9.0, 2.0, 4.0, 3.0], "events": 600})
    assert ours == {"seconds_of_epoch": 3.0, "events_per_s": 200.0}
    theirs = speed_of("rectools", {"epoch_s": [60.0], "timed_s": [6.0], "timed_events": [60]})
    assert theirs == {"seconds_of_epoch": 60.0, "events_per_s": 10.0}
    assert speed_of("recbole", {"outcome": "killed: after 1 s"}) == {}


def test_ratios_stand_between_ours_and_peers_that_ended_well() -> None:
    runs = [{"seconds_of_epoch": s, "events_per_s": e} for s, e in ((3.0, 300.0), (1.0, 100.0), (2.0, 200.0))]
    sides = {"ours-fp32": median_speed(runs), "ours-bf16": median_speed([{}]), "rectools": {"events_per_s": 10.0}}
    assert sides["ours-fp32"] == {"seconds_of_epoch": 2.0, "events_per_s": 200.0}
    assert ratios(sides) == {"ours-fp32 / rectools": 20.0}


def _lists(*rows: tuple[int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64, "rank": pl.Int64}, orient="row")


def _queries(circle: PreparedDataset) -> Queries:
    queries = circle.queries("test")
    assert (np.diff(queries.target_offsets) == 1).all()
    return queries


def test_a_rank_is_the_place_of_the_target_in_its_own_users_list(circle: PreparedDataset) -> None:
    queries = _queries(circle)
    (first, second), targets = queries.user[:2].tolist(), queries.target_items.tolist()
    other = targets[0] % circle.num_items + 1
    rows = [(first, targets[0], 3), (first, other, 1), (second, targets[1] % circle.num_items + 1, 1)]
    ranks = listed_ranks(_lists(*rows), queries)
    assert len(ranks) == len(targets)
    assert ranks[0] == 3.0
    assert np.isinf(ranks[1:]).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 5, 1), (1, 5, 2)], "same user_id and item_id"),
        ([(1, 5, 1), (1, 6, 1)], "same user_id and rank"),
        ([(1, 5, 0)], "rank=0"),
    ],
)
def test_lists_that_are_none_are_refused(
    circle: PreparedDataset, rows: list[tuple[int, int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        listed_ranks(_lists(*rows), _queries(circle))


def test_the_table_of_histories_holds_every_event_in_order(circle: PreparedDataset) -> None:
    slices = circle.train_slices()
    found = history_table(slices)
    assert found["item_id"].to_list() == [item for i in range(len(slices)) for item in slices.gather(i)[0].tolist()]
    assert found["user_id"].to_list() == np.repeat(slices.user, slices.lengths).tolist()
    assert found["position"].to_list() == [place for length in slices.lengths for place in range(length)]
