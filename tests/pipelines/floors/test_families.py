import pytest

from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import EaseConfig, ItemKNNConfig, RecentConfig, TransitionConfig
from recsys.pipelines.floors.families import FAMILIES, drawn, nearby, turns

CONFIGS = {
    "recent-popularity": RecentConfig,
    "transition-knn": TransitionConfig,
    "item-knn": ItemKNNConfig,
    "ease": EaseConfig,
}


def test_sixty_trials_are_shared_by_all_families() -> None:
    counts = dict.fromkeys(CONFIGS, 0)
    for family, number in turns(FAMILIES, 60):
        assert number == counts[family]
        counts[family] += 1
    assert counts == {"recent-popularity": 6, "transition-knn": 27, "item-knn": 18, "ease": 9}


def test_a_family_that_cannot_run_leaves_its_turns_to_the_others() -> None:
    assert len(list(turns(["popularity", "transition-knn", "item-knn"], 60))) == 60
    assert list(turns(["popularity"], 60)) == []


def test_more_trials_begin_with_the_same_ones() -> None:
    assert list(turns(FAMILIES, 80))[:60] == list(turns(FAMILIES, 60))


@pytest.mark.parametrize("family", CONFIGS)
def test_every_draw_is_a_valid_setting_and_a_function_of_its_number(circle: PreparedDataset, family: str) -> None:
    seen = set()
    for number in range(60):
        settings = drawn(circle, family, number, seed=3)
        assert settings == drawn(circle, family, number, seed=3)
        assert configs.dump(configs.load(CONFIGS[family], settings)) == configs.dump(CONFIGS[family](**settings))
        near = nearby(circle, family, settings, number, seed=3)
        configs.load(CONFIGS[family], near)
        assert near == nearby(circle, family, settings, number, seed=3)
        assert near.keys() == settings.keys()
        assert near.get("unit") == settings.get("unit")
        seen.add(str(settings))
    assert len(seen) > 50
    assert drawn(circle, family, 0, seed=3) != drawn(circle, family, 0, seed=4)


def test_half_lives_in_seconds_are_tried_only_where_times_are_real(
    circle: PreparedDataset, walks: PreparedDataset
) -> None:
    units = [{drawn(data, "recent-popularity", n, 0)["unit"] for n in range(4)} for data in (circle, walks)]
    assert units == [{"events", "seconds"}, {"events"}]


@pytest.mark.parametrize("family", CONFIGS)
def test_local_trials_step_away_but_not_far(circle: PreparedDataset, family: str) -> None:
    around = drawn(circle, family, 0, seed=3)
    steps = [nearby(circle, family, around, number, seed=3) for number in range(40)]
    assert len({str(one) for one in steps}) > 30
    far = [drawn(circle, family, 2 * number, seed=3) for number in range(40)]
    for name, value in around.items():
        if isinstance(value, float) and name in ("decay", "query_decay"):  # drawn evenly
            mean_step = sum(abs(one[name] - value) for one in steps) / 40
            assert 0 < mean_step < sum(abs(one[name] - value) for one in far) / 40
