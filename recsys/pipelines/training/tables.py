"""How the embedding tables of a model stand, written down while it trains."""

from torch import nn

from recsys.models.protocols import HasGauges
from recsys.pipelines.run_log import RunLog


def log_tables(module: nn.Module, log: RunLog, step: int, epoch: int) -> None:
    """One event `tables` with all gauges, as `item.rows.size`; nothing where the model has none.

    The first time that a table has refused an id, the run is warned of it.
    """
    gauges = gauges_of(module)
    values = {f"{name}.{key}": value for name, of_part in gauges.items() for key, value in of_part.items()}
    if values:
        log.write("tables", step, epoch=epoch, **values)
    for name, of_part in gauges.items():
        if of_part.get("refused", 0) > 0:
            log.warn_once(
                f"{name} is full: new ids find no room, get no row and are not trained ({name}.refused in log.jsonl "
                "counts how often); raise its capacity, or set an eviction",
                step,
            )


def gauges_of(module: nn.Module) -> dict[str, dict[str, float]]:
    """The gauges of each part of `module` that has some, by its name; a part's own alone, not those of its parts."""
    found = {name: part.gauges() for name, part in module.named_modules() if isinstance(part, HasGauges)}
    own = {
        name: {key: value for key, value in gauges.items() if isinstance(value, int | float)}
        for name, gauges in found.items()
    }
    return {name: gauges for name, gauges in own.items() if gauges}
