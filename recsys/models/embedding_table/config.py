"""How an embedding table is to behave."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from recsys.config import MAX_SEED, check_types
from recsys.kernels.row_pages import RowOptimizer
from recsys.models.embedding_table.admission import AdmissionConfig

Eviction = Literal["none", "lru", "lfu", "ttl"]
Unknown = Literal["zero", "learned"]


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Width, optimizer, and which ids have a row for how long.

    Attributes:
        width: numbers of a row.
        optimizer: of the rows.
        init_std: deviation of a new row's numbers, a function of seed and id.
        capacity: most rows; null grows without end.
        eviction: at capacity. none: new ids are refused; lru: the row that was touched longest ago goes; lfu: the one
            that had the fewest steps; ttl: one that is past its time to live, and if there is none new ids are refused.
        ttl_s: seconds after its last touch that a row may be dropped; null never.
        feature_ttl_s: the same by feature number, in place of `ttl_s`, where ids carry their feature.
        feature_bits: upper bits of an id that are its feature's number; see `FeatureIds`.
        admission: which new ids get a row.
        unknown: vector of an id without a row, zero or a learned one.
        id_dropout: share of the look-ups in training that read the unknown vector, so that it learns.
        expected: rows for which memory is taken at once.
        seed: of new rows, admission and id dropout.
        hot_rows: most rows in memory, the others lie in `cold_file`; null keeps all in memory. Every other setting is
            of all rows.
        cold_file: path of the file of the rows that are not in memory; one table alone may have it open.

    Raises:
        ValueError: a field holds another type than it should, or a value out of range.
    """

    width: int
    optimizer: RowOptimizer = RowOptimizer()
    init_std: float = 0.02
    capacity: int | None = None
    eviction: Eviction = "none"
    ttl_s: float | None = None
    feature_ttl_s: Mapping[int, float] = field(default_factory=dict)
    feature_bits: int = 0
    admission: AdmissionConfig = AdmissionConfig()
    unknown: Unknown = "zero"
    id_dropout: float = 0.0
    expected: int = 0
    seed: int = 0
    hot_rows: int | None = None
    cold_file: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.width < 1:
            raise ValueError(f"width={self.width}; wanted at least 1")
        if self.init_std < 0:
            raise ValueError(f"init_std={self.init_std}; wanted at least 0")
        if self.eviction != "none" and self.capacity is None:
            raise ValueError(f"eviction={self.eviction} without a capacity; set capacity, at which it begins")
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"capacity={self.capacity}; wanted at least 1, or null")
        if not 0 <= self.feature_bits <= 32:
            raise ValueError(f"feature_bits={self.feature_bits}; wanted 0 to 32")
        for name, seconds in (
            ("ttl_s", self.ttl_s),
            *((f"feature_ttl_s[{k}]", v) for k, v in self.feature_ttl_s.items()),
        ):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name}={seconds}; wanted above 0, or null")
        wrong = [number for number in self.feature_ttl_s if not 0 <= number < 1 << self.feature_bits]
        if wrong:
            raise ValueError(f"feature_ttl_s names feature {wrong[0]}; wanted 0 to {(1 << self.feature_bits) - 1}")
        if self.eviction == "ttl" and not self.has_ttl:
            raise ValueError("eviction=ttl without a time to live; set ttl_s or feature_ttl_s")
        if not 0 <= self.id_dropout < 1:
            raise ValueError(f"id_dropout={self.id_dropout}; wanted at least 0 and below 1")
        if self.id_dropout and self.unknown == "zero":
            raise ValueError(
                f"id_dropout={self.id_dropout} with unknown=zero, which learns nothing; set unknown=learned"
            )
        if self.expected < 0 or (self.capacity is not None and self.expected > self.capacity):
            raise ValueError(f"expected={self.expected}; wanted at least 0 and at most capacity={self.capacity}")
        if (self.hot_rows is None) != (self.cold_file is None):
            raise ValueError(f"hot_rows={self.hot_rows} and cold_file={self.cold_file}; set both, or neither")
        if self.hot_rows is not None and self.hot_rows < 1:
            raise ValueError(f"hot_rows={self.hot_rows}; wanted at least 1, or null")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed={self.seed}; wanted at least 0 and below 2^64")

    @property
    def has_ttl(self) -> bool:
        """Whether any row may be too old."""
        return self.ttl_s is not None or bool(self.feature_ttl_s)
