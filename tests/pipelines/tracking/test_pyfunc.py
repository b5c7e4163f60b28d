from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.models.bundle import load_bundle
from recsys.models.ranking.ranker import History, Ranker
from recsys.models.tracking_server import connect
from recsys.pipelines.tracking.tracker import Tracker

pytest.importorskip("mlflow", reason="needs the extra tracking")


def test_the_registered_model_answers_as_the_ranker_and_holds_no_pickle(
    tmp_path: Path, bundle: Path, store: str, runs: Any
) -> None:
    import mlflow
    import pandas as pd

    run = runs.write(tmp_path / "model")
    runs.end(run, bundle)
    sent = Tracker(run, store, "model", model_name="shop").send()
    assert sent.model == "models:/shop/1"
    with connect(store) as client:
        assert client.get_model_version_by_alias("shop", "challenger").version == 1
        folder = Path(mlflow.artifacts.download_artifacts("models:/shop@challenger", dst_path=str(tmp_path / "down")))
        model = mlflow.pyfunc.load_model("models:/shop@challenger")
        frame = pd.DataFrame({"sequence": [["i1", "i2"], "i3", "", "unheard"], "k": [3, 2, 4, 1]})
        answer = model.predict(frame)
        plain = model.predict(pd.DataFrame({"sequence": ["i1 i2"]}))
    assert load_bundle(folder / "data" / "bundle").version == load_bundle(bundle).version
    names = {file.name for file in folder.rglob("*") if file.is_file()}
    assert "MLmodel" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin", ".cloudpickle"))]
    assert "pkl" not in (folder / "MLmodel").read_text()

    ranker = Ranker(load_bundle(bundle))
    first, second, empty, unknown = ranker.recommend([History(s) for s in (["i1", "i2"], ["i3"], [], [])], 10)
    assert list(answer["item_ids"][0]) == first.item_ids[:3]
    assert list(answer["scores"][0]) == pytest.approx(first.scores[:3])
    assert list(answer["item_ids"][1]) == second.item_ids[:2]
    assert list(answer["item_ids"][2]) == empty.item_ids[:4]
    assert list(answer["item_ids"][3]) == unknown.item_ids[:1]
    assert list(answer["source"]) == ["model", "model", "popularity", "popularity"]
    assert list(plain["item_ids"][0]) == first.item_ids[:10]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"items": ["i1"]}, "wanted a column sequence"),
        ({"sequence": [3.5]}, "sequence=3.5: wanted a list of item ids, or text"),
        ({"sequence": ["i1"], "k": [0]}, "k=0: wanted at least 1"),
        ({"sequence": ["i1"], "k": ["many"]}, "k='many': wanted a whole number"),
    ],
)
def test_a_question_the_model_cannot_read_is_refused_in_one_line(
    bundle: Path, columns: dict[str, Any], message: str
) -> None:
    import pandas as pd

    from recsys.pipelines.tracking.pyfunc import BundleModel

    with pytest.raises(InputError, match=message):
        BundleModel(bundle).predict(pd.DataFrame(columns))


def test_the_requirements_are_packages_of_an_index_at_their_installed_versions(
    tmp_path: Path, bundle: Path, store: str, runs: Any
) -> None:
    import mlflow

    run = runs.write(tmp_path / "needs")
    runs.end(run, bundle)
    sent = Tracker(run, store, "needs", model_name="needs").send()
    with connect(store):
        file = Path(mlflow.artifacts.download_artifacts(f"{sent.model}/requirements.txt", dst_path=str(tmp_path)))
    needs = dict(line.split("==") for line in file.read_text().split())
    assert set(needs) == {"mlflow-skinny", "numpy", "pandas", "safetensors", "torch"}
    assert all(version(name).partition("+")[0] == wanted for name, wanted in needs.items())
