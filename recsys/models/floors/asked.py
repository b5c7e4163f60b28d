"""The last events of histories, and how much each weighs.

Dims: B users.
"""

import numpy as np
import numpy.typing as npt

from recsys.features.batches import JaggedBatch
from recsys.features.slices import ranges

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def asked_events(batch: JaggedBatch, last: int, decay: float) -> tuple[Integers, Integers, Floats]:
    """Row, item and weight of the last `last` events of each history, flat, oldest first.

    Args:
        batch: B histories.
        last: at least 1.
        decay: an event weighs decay^age; the last event of a history has age 0.
    """
    lengths = np.array(batch.lengths, dtype=np.int64)
    taken = np.minimum(lengths, last)
    row, end = np.repeat(np.arange(len(lengths)), taken), np.cumsum(lengths)
    position = ranges(end - taken, end)
    age = np.repeat(end, taken) - 1 - position
    return row, batch.values.cpu().numpy()[position], decay ** age.astype(np.float64)
