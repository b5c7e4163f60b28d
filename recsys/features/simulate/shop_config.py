"""The knobs of the simulated shop. `shop.yaml` beside this file holds the same defaults."""

from dataclasses import dataclass

from recsys.features.simulate.shop_words import CATEGORIES, PRICES, STYLES

PERIOD_DAYS = 3  # popularity and the shelf change at the start of a period


@dataclass(frozen=True, kw_only=True)
class ShopConfig:
    """World S. `docs/shop.md` tells what each knob does to the world."""

    seed: int = 1
    users: int = 6000
    items: int = 1500
    days: int = 60
    events_per_user: float = 42.0  # mean
    activity: float = 0.9  # sigma of the log-normal number of events
    categories: int = 24
    styles: int = 6
    price_levels: int = 3
    needs: int = 10  # recipes: ordered lists of categories
    segments: int = 20  # groups of users with one taste
    intent_share: float = 0.95  # events that follow an intent; 0 is the null world
    noise: float = 0.03  # share of the intents' events that are drawn uniformly from the shelf
    intent_length: tuple[int, int] = (3, 9)  # shortest and longest recipe
    interleaving: float = 0.05  # chance that a second intent starts while one runs
    switching: float = 0.35  # chance to turn to the other one of two intents
    skip: float = 0.06  # chance to leave out the next step
    repeat: float = 0.1  # chance of another item for the step just done
    abandon: float = 0.02  # chance to give up after an event
    mismatch: float = 0.01  # weight of an item of another style than the wished one, 1 with it
    price_tolerance: float = 0.12  # weight left per price level beside the wished one
    taste: float = 1.0  # spread of the segments' log-preferences; 0: all want the same
    drift: float = 0.5  # standard deviation of log-popularity gathered over the whole time
    births: float = 0.2  # share of items that appear after the first day
    deaths: float = 0.1  # share of items that leave before the last day
    zipf: tuple[float, float] = (0.8, 1.1)  # exponent of popularity within a category

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_shares()
        for name in ("intent_length", "zipf"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}=[{low}, {high}]: wanted 0 <= first <= second")
        if self.intent_length[0] < 2:
            raise ValueError(f"intent_length={list(self.intent_length)}: an intent has at least 2 steps")
        if self.births + self.deaths > 0.8:
            raise ValueError(
                f"births + deaths = {self.births + self.deaths:g}: wanted at most 0.8, or the shelf is bare"
            )
        if self.intent_share * (1 - self.noise) > 0.99:
            raise ValueError("intent_share * (1 - noise) exceeds 0.99; leave at least 1 % of events to chance")

    def _check_counts(self) -> None:
        limits = {
            "seed": (0, 2**63 - 1),
            "users": (1, 500_000),
            "items": (20, 1_000_000),
            "days": (PERIOD_DAYS, 3650),
            "categories": (2, len(CATEGORIES)),
            "styles": (1, len(STYLES)),
            "price_levels": (1, len(PRICES)),
            "needs": (1, 10_000),
            "segments": (1, 1_000),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: wanted {low} to {high}")
        if self.items < 5 * self.categories:
            raise ValueError(f"items={self.items}: wanted at least 5 for each of {self.categories} categories")
        if not 2 <= self.events_per_user <= self.items / 4:
            raise ValueError(f"events_per_user={self.events_per_user:g}: wanted 2 to items/4={self.items / 4:g}")

    def _check_shares(self) -> None:
        for name in ("intent_share", "noise", "interleaving", "switching", "abandon", "births", "deaths"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name):g}: wanted a share from 0 to 1")
        for name in ("mismatch", "price_tolerance"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name):g}: wanted a weight above 0, at most 1")
        for name in ("activity", "taste", "drift", "skip", "repeat"):
            if not 0 <= getattr(self, name) <= 3:
                raise ValueError(f"{name}={getattr(self, name):g}: wanted 0 to 3")
        if self.skip + self.repeat >= 1:
            raise ValueError(f"skip + repeat = {self.skip + self.repeat:g}: wanted less than 1")

    @property
    def periods(self) -> int:
        """Spans of constant popularity."""
        return -(-self.days // PERIOD_DAYS)
