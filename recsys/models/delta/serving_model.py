"""Tables and parameters of a model that servers read while deltas come in.

served = ServingModel(bundle)
for delta in deltas_since(folder, served.at): served.apply(delta)
now = served.version()               a request holds it, and sees that version alone
now.tables["items"].vectors(ids)
served.rollback(version)             a pointer is set
"""

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.errors import DeltaError, GapError, StaleError
from recsys.models.delta.delta import Delta, TableDelta, Tables, Version
from recsys.models.delta.serving_table import BREATH_S, PAGE_ROWS, ServingTable, TableVersion

PAGES_AT_A_TIME = 64  # are freed


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """A model at one version; nothing in it changes.

    Attributes:
        version: epoch and sequence.
        tables: by name; one that is not there is a DeltaError.
        dense: all parameters.
    """

    version: Version
    tables: Mapping[str, TableVersion]
    dense: Mapping[str, Tensor]


class ServingModel:
    """Applies deltas in their order, and keeps the last versions.

    Args:
        bundle: sha256 of the bundle that the model began with.
        retained: how many versions can be read or rolled back to, the current one among them.
        page_rows: rows of a page of memory, a power of two: what a version copies for a row that is touched.

    Raises:
        ValueError: `retained` is below 1, or `page_rows` no power of two.
    """

    def __init__(self, bundle: str, *, retained: int = 3, page_rows: int = PAGE_ROWS) -> None:
        if retained < 1:
            raise ValueError(f"retained={retained}; wanted at least 1")
        self._bundle, self._page_rows = bundle, page_rows
        ServingTable(1, page_rows)  # checks it
        self._tables: dict[str, ServingTable] = {}
        self._retained = retained
        self._versions: deque[ModelVersion] = deque(maxlen=retained)  # never empty after the first
        self._applying = threading.Lock()

    @property
    def at(self) -> Version | None:
        """The current version; None before the first base."""
        return self._versions[-1].version if self._versions else None

    @property
    def retained(self) -> tuple[Version, ...]:
        """Those that `rollback` takes, the current one last."""
        return tuple(kept.version for kept in tuple(self._versions))

    def version(self) -> ModelVersion:
        """The current version.

        Raises:
            DeltaError: no base was applied yet.
        """
        try:
            return self._versions[-1]
        except IndexError:
            raise DeltaError("there is no version yet; apply a base first") from None

    def apply(self, delta: Delta) -> bool:
        """Make the delta's version the current one; False where it is applied already. Readers go on meanwhile.

        Raises:
            StaleError: it is of an older epoch.
            GapError: it does not follow the current version; nothing is changed.
            DeltaError: it is of another bundle, or does not fit; nothing is changed.
        """
        with self._applying:
            if not self._is_next(delta):
                return False
            delta = delta.loaded()
            tables = self._tables_for(delta)
            before = self._versions[-1] if self._versions and tables is self._tables else None
            versions: Tables[TableVersion] = Tables() if before is None else Tables(before.tables)
            is_base = delta.since is None
            for name, changed in delta.tables.items():
                table_before = versions[name] if name in versions else tables[name].empty()
                versions[name] = tables[name].applied(table_before, changed, is_base=is_base)
            dense = dict(delta.dense) if is_base or before is None else {**before.dense, **delta.dense}
            self._tables = tables
            del before
            self._retire()
            self._versions.append(ModelVersion(delta.version, versions, dense))
            return True

    def rollback(self, to: Version) -> None:
        """Make a retained version the current one, and forget those after it; the delta after it may be applied again.

        Raises:
            ValueError: it is not retained.
        """
        with self._applying:
            if to not in self.retained:
                raise ValueError(f"version {to} is not retained; wanted one of {', '.join(map(str, self.retained))}")
            undone = []
            while self._versions[-1].version != to:
                undone.append(self._versions.pop())
            self._tables = {name: version.table for name, version in self._versions[-1].tables.items()}
            for name, version in self._versions[-1].tables.items():
                later = [late.tables[name] for late in reversed(undone) if name in late.tables]
                later = [late for late in later if late.table is version.table]
                if later and later[-1] is not version:
                    version.table.rolled_back(version, later)

    def _retire(self) -> None:
        """Make room for a version. To free all pages of one at once would keep readers from the interpreter's lock."""
        if len(self._versions) < self._retained:
            return
        pages = [page for table in self._versions[0].tables.values() for page in table.pages()]
        if self._retained > 1:
            self._versions.popleft()
        while pages:
            del pages[-PAGES_AT_A_TIME:]
            time.sleep(BREATH_S)

    def _is_next(self, delta: Delta) -> bool:
        _check_version(delta)
        if delta.bundle != self._bundle:
            raise DeltaError(f"delta {delta.version} is of bundle {delta.bundle}; wanted {self._bundle}")
        at = self.at
        if at is None:
            if delta.since is not None:
                raise GapError(f"delta {delta.version} follows {delta.since}, but there is no base; apply one first")
            return True
        if delta.epoch < at.epoch:
            raise StaleError(f"delta {delta.version} is of an older epoch than {at}; a later trainer took over")
        if delta.epoch == at.epoch and delta.sequence <= at.sequence:
            return False
        if delta.since is not None and delta.since != at:
            raise GapError(
                f"delta {delta.version} follows {delta.since}, but this model is at {at}; "
                "apply those between, or a base, or roll back to where they part"
            )
        return True

    def _tables_for(self, delta: Delta) -> dict[str, ServingTable]:
        """The tables that it changes; a base of another shape begins with new ones."""
        for name, table in delta.tables.items():
            is_known = delta.since is not None and name in self._tables
            _check(name, table, self._tables[name].width if is_known else None)
        if delta.since is not None:
            for name, table in delta.tables.items():
                if name not in self._tables:
                    raise DeltaError(f"table {name!r} is unknown; wanted {', '.join(sorted(self._tables))}")
                if table.vectors.shape[1] != self._tables[name].width:
                    raise DeltaError(
                        f"vectors of {name!r} have {table.vectors.shape[1]} numbers; wanted {self._tables[name].width}"
                    )
            return self._tables
        widths = {name: table.vectors.shape[1] for name, table in delta.tables.items()}
        if widths == {name: table.width for name, table in self._tables.items()}:
            return self._tables
        return {name: ServingTable(width, self._page_rows) for name, width in widths.items()}


def _check_version(delta: Delta) -> None:
    numbers = [delta.epoch, delta.sequence, *([] if delta.since is None else delta.since)]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise DeltaError(
            f"a delta has epoch={delta.epoch!r}, sequence={delta.sequence!r} and since={delta.since!r}; "
            "wanted whole numbers"
        )


def _check(name: str, table: TableDelta, width: int | None) -> None:
    _check_tensor(name, "ids", table.ids, torch.int64)
    _check_tensor(name, "deleted", table.deleted, torch.int64)
    _check_tensor(name, "vectors", table.vectors, torch.float32)
    if table.ids.dim() != 1 or table.vectors.dim() != 2 or len(table.ids) != len(table.vectors):
        raise DeltaError(
            f"{name!r} has ids of the shape {tuple(table.ids.shape)} and vectors of {tuple(table.vectors.shape)}; "
            "wanted (M,) and (M, width)"
        )
    if table.deleted.dim() != 1:
        raise DeltaError(f"{name!r} has deleted ids of the shape {tuple(table.deleted.shape)}; wanted (K,)")
    width = table.vectors.shape[1] if width is None else width
    if table.unknown is not None:
        _check_tensor(name, "unknown", table.unknown, torch.float32)
        if table.unknown.shape != (width,):
            raise DeltaError(
                f"the unknown vector of {name!r} is of the shape {tuple(table.unknown.shape)}; wanted ({width},)"
            )
    both = torch.cat([table.ids, table.deleted])
    if len(torch.unique(both)) < len(both):
        raise DeltaError(f"an id of {name!r} stands twice in one delta; wanted each once, touched or deleted")


def _check_tensor(name: str, part: str, values: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(values, Tensor):
        raise DeltaError(f"{part} of {name!r} is {type(values).__name__}; wanted a tensor of {dtype}")
    if values.dtype != dtype or values.device.type != "cpu":
        raise DeltaError(f"{part} of {name!r} is of {values.dtype} on {values.device}; wanted {dtype} on the CPU")
    if dtype == torch.float32 and not bool(torch.isfinite(values).all()):
        raise DeltaError(f"{part} of {name!r} has numbers that are NaN or infinite; restore the trainer, or mend it")
