"""Thresholds between two logs: above `warn_…` a check warns, above `max_…` it fails."""

import dataclasses

from recsys.features.schema import ReadConfig


def _check(low: float, high: float, names: str, least: float = 0.0) -> None:
    if not least <= low <= high:
        raise ValueError(f"{names}: {low} and {high}: wanted {least:g} <= warn <= max; set both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeLimits:
    """How much more or less there may be: the larger count over the smaller."""

    warn_ratio: float = 1.5
    max_ratio: float = 2.0

    def __post_init__(self) -> None:
        _check(self.warn_ratio, self.max_ratio, "volume.warn_ratio, volume.max_ratio", 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RiseLimits:
    """How far a share (of rejected lines, of missing values) may rise or, of missing values, fall."""

    warn_rise: float = 0.005
    max_rise: float = 0.02

    def __post_init__(self) -> None:
        _check(self.warn_rise, self.max_rise, "warn_rise, max_rise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewLimits:
    """The share of the new log's events whose item the old log does not have."""

    warn_share: float = 0.2
    max_share: float = 0.5

    def __post_init__(self) -> None:
        _check(self.warn_share, self.max_share, "warn_share, max_share")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewUserLimits(NewLimits):
    """The share of the new log's events whose user the old log does not have."""

    warn_share: float = 0.95
    max_share: float = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class TypeLimits(NewLimits):
    """The share of a log's events whose type the other log does not have."""

    warn_share: float = 0.0
    max_share: float = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClampedLimits(NewLimits):
    """The share of the new log's events whose time lies in the future."""

    warn_share: float = 0.001
    max_share: float = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanLimits:
    """How much earlier the new log ends than the old one, as a share of the time that the old one spans."""

    warn_share: float = 0.01

    def __post_init__(self) -> None:
        if not self.warn_share >= 0:
            raise ValueError(f"span.warn_share={self.warn_share}: wanted a share, at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftLimits:
    """Jensen-Shannon distance of two distributions in bits (0 to 1), less what chance alone gives."""

    warn_drift: float = 0.02
    max_drift: float = 0.05

    def __post_init__(self) -> None:
        _check(self.warn_drift, self.max_drift, "warn_drift, max_drift")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Thresholds between two logs, and how both are read."""

    read: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    volume: VolumeLimits = dataclasses.field(default_factory=VolumeLimits)  # of events, users, items
    rejected: RiseLimits = dataclasses.field(default_factory=RiseLimits)
    clamped: ClampedLimits = dataclasses.field(default_factory=ClampedLimits)  # times in the future
    span: SpanLimits = dataclasses.field(default_factory=SpanLimits)
    missing: RiseLimits = dataclasses.field(default_factory=RiseLimits)  # of each column
    new_items: NewLimits = dataclasses.field(default_factory=NewLimits)
    new_users: NewUserLimits = dataclasses.field(default_factory=NewUserLimits)
    event_types: TypeLimits = dataclasses.field(default_factory=TypeLimits)
    popularity: DriftLimits = dataclasses.field(default_factory=DriftLimits)  # of items that both have
    hours: DriftLimits = dataclasses.field(default_factory=DriftLimits)  # of the day, UTC
    type_mix: DriftLimits = dataclasses.field(default_factory=DriftLimits)
    weights: DriftLimits = dataclasses.field(default_factory=DriftLimits)
