"""RecTools: seconds of building its dataset and SASRec's training sequences.

    .peers/rectools/bin/python benchmarks/peers/runners/rectools_dataset.py PATH MAX_LEN

PATH is a Parquet file or a folder of them with user_id, item_id and timestamp (seconds).
"""

import json
import sys
import time
import warnings
from importlib.metadata import version


def main(path: str, max_len: int) -> None:
    """Build, and print the seconds of each step and what was built."""
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models.nn.transformers.sasrec import SASRecDataPreparator

    marks = [("import", began), ("read", time.perf_counter())]
    events = pd.read_parquet(path)
    events = events.rename(columns={"timestamp": Columns.Datetime})
    events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="s")
    events[Columns.Weight] = 1.0
    marks.append(("construct", time.perf_counter()))
    dataset = Dataset.construct(events)
    marks.append(("process_dataset_train", time.perf_counter()))
    preparator = SASRecDataPreparator(session_max_len=max_len, batch_size=128, dataloader_num_workers=0)
    preparator.process_dataset_train(dataset)
    marks.append(("dataloader", time.perf_counter()))
    loader = preparator.get_dataloader_train()
    marks.append(("end", time.perf_counter()))
    found = {
        "version": version("rectools"),
        "seconds": {name: round(marks[n + 1][1] - at, 3) for n, (name, at) in enumerate(marks[:-1])},
        "users": dataset.user_id_map.size,
        "items": dataset.item_id_map.size,
        "events": len(dataset.interactions.df),
        "train_sequences": len(loader.dataset),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
