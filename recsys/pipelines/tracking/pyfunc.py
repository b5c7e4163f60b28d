"""A bundle as an MLflow model: `mlflow.pyfunc.load_model("models:/sasrec@challenger").predict(frame)`.

The registered model is the bundle folder itself with this module as its loader, so nothing is pickled and the scores
are those of the server (`models.ranking.ranker`).
"""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import InputError
from recsys.features.vocabulary import Vocabulary
from recsys.models.bundle import load_bundle
from recsys.models.ranking.ranker import History, Ranker

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

DEFAULT_K = 10
# What loads and answers; recsys itself is on no index, so it comes from its checkout.
_REQUIRED = ("mlflow-skinny", "numpy", "pandas", "safetensors", "torch")


def log_bundle(client: "MlflowClient", run_id: str, bundle: Path) -> Any:
    """Logs a bundle folder as an MLflow model of the run, without pickle; returns MLflow's ModelInfo.

    Args:
        client: of `tracking_server.connect`, inside its block.
        run_id: the run that made the bundle.
        bundle: the folder.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    items = Vocabulary.load(bundle / "vocabulary", "items")
    example = " ".join(map(str, items.decode(list(range(1, min(3, len(items)) + 1)))))
    item_type = DataType.long if items.kind == "int" else DataType.string
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "sequence", required=False), ColSpec(DataType.long, "k", required=False)]),
        outputs=Schema(
            [
                ColSpec(Array(item_type), "item_ids"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(DataType.string, "source"),
            ]
        ),
    )
    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment_id, name="bundle", source_run_id=run_id)
    return Model.log(
        artifact_path=None,
        model_id=logged.model_id,
        name="bundle",
        flavor=mlflow.pyfunc,
        run_id=run_id,
        loader_module="recsys.pipelines.tracking.pyfunc",
        data_path=str(bundle),
        signature=signature,
        input_example=pd.DataFrame({"sequence": [example]}),
        pip_requirements=_pip_requirements(),
    )


def _pip_requirements() -> list[str]:
    # Without the local label: no index has torch==2.13.0+cpu, and 2.13.0 is met by it.
    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIRED]


class BundleModel:
    """What MLflow calls; the bundle in `path` behind it."""

    def __init__(self, path: Path) -> None:
        self._ranker = Ranker(load_bundle(path))

    def predict(self, frame: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """The best unseen items of each row.

        Args:
            frame: column `sequence` (raw item ids, oldest first: a list, or text with blanks between) and, where
                wanted, `k` (how many items; 10 by default).
            params: none are known.

        Returns:
            Columns `item_ids`, `scores` (best first) and `source` (`model`, or `popularity` where no item is known).

        Raises:
            InputError: no column `sequence`, a sequence that is neither list nor text, or k below 1.
        """
        import pandas as pd

        if params:
            raise InputError(f"params {sorted(params)}: none are known; set the column k instead")
        if "sequence" not in frame.columns:
            raise InputError(f"columns {list(frame.columns)}: wanted a column sequence, and k where it is not 10")
        sizes = frame["k"] if "k" in frame.columns else [DEFAULT_K] * len(frame)
        ks = [_size(k) for k in sizes]
        ranked = self._ranker.recommend([History(_item_ids(s)) for s in frame["sequence"]], max(ks, default=DEFAULT_K))
        rows = [(r.item_ids[:k], r.scores[:k], r.source) for r, k in zip(ranked, ks, strict=True)]
        return pd.DataFrame(rows, columns=["item_ids", "scores", "source"], index=frame.index)


def _load_pyfunc(path: str) -> BundleModel:
    return BundleModel(Path(path))


def _item_ids(sequence: object) -> list[int | str]:
    if isinstance(sequence, str):
        return list(sequence.split())
    if isinstance(sequence, Iterable):
        return [item if isinstance(item, str) else int(item) for item in sequence]
    raise InputError(f"sequence={sequence!r}: wanted a list of item ids, or text with blanks between them")


def _size(k: object) -> int:
    if k is None or k != k:
        return DEFAULT_K
    if not isinstance(k, int | float) and not hasattr(k, "__int__"):
        raise InputError(f"k={k!r}: wanted a whole number")
    if int(k) < 1:
        raise InputError(f"k={k}: wanted at least 1")
    return int(k)
