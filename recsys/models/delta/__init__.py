"""What changed in a model that trains on: logged so that nothing is lost, and followed by those who serve it."""

from recsys.models.delta.chain import deltas_since
from recsys.models.delta.cut import Cut
from recsys.models.delta.delta import Delta, TableDelta, Version
from recsys.models.delta.log import DeltaLog, Restored, read_log
from recsys.models.delta.serving_model import ModelVersion, ServingModel
from recsys.models.delta.serving_table import ServingTable, TableVersion

__all__ = [
    "Cut",
    "Delta",
    "DeltaLog",
    "ModelVersion",
    "Restored",
    "ServingModel",
    "ServingTable",
    "TableDelta",
    "TableVersion",
    "Version",
    "deltas_since",
    "read_log",
]
