import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from recsys.features.dataset import PreparedDataset

HEAVY = (
    "torch",
    "polars",
    "pyarrow",
    "numpy",
    "mlflow",
    "fastapi",
    "torchrec",
    "pandas",
    "matplotlib",
    "rich",
    "typer",
)
BLOCKED = (
    "polars",
    "pyarrow",
    "mlflow",
    "fastapi",
    "uvicorn",
    "pydantic",
    "yaml",
    "rich",
    "typer",
    "pandas",
    "sqlalchemy",
    "matplotlib",
    "torchrec",
    "orjson",
)
BARE_MODULES = (
    "recsys.config",
    "recsys.errors",
    "recsys.kernels.attention",
    "recsys.kernels.linear_cross_entropy",
    "recsys.features.batches",
    "recsys.features.dataset",
    "recsys.features.vocabulary",
    "recsys.models.registry",
    "recsys.models.bundle",
    "recsys.models.ranking.ranker",
    "recsys.pipelines.checkpoint",
    "recsys.pipelines.evaluation.evaluate",
    "recsys.pipelines.training",
)

BLOCK = f"""
import sys

class Wall:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Wall(finder) for finder in sys.meta_path]
"""


def python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_import_recsys_is_light_and_quick() -> None:
    code = (
        "import sys, time; began = time.process_time(); import recsys; took = time.process_time() - began\n"
        f"print(took, *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    seconds, *loaded = min((python(code).stdout.split() for _ in range(3)), key=lambda words: float(words[0]))
    assert loaded == []
    assert float(seconds) < 0.2


def test_the_command_line_parses_without_a_heavy_package() -> None:
    heavy = tuple(name for name in HEAVY if name not in ("rich", "typer"))
    code = f"import sys; from recsys.cli import main; main(['--help'])\nassert not set({heavy!r}) & set(sys.modules)"
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: recsys" in done.stdout


def test_the_wall_of_these_tests_stands() -> None:
    done = python(f"{BLOCK}\nimport polars")
    assert "No module named 'polars'" in done.stderr


def test_a_bare_machine_imports_the_core_trains_and_ranks(tmp_path: Path, circle: PreparedDataset) -> None:
    config = {
        "data": str(circle.path),
        "model": {"name": "sasrec", "d_model": 8, "num_layers": 1, "num_heads": 1, "max_len": 8},
        "train": {"epochs": 1, "threads": 1, "tokens_per_batch": 512},
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    code = (
        f"{BLOCK}\n"
        "import importlib\n"
        "from pathlib import Path\n"
        f"for name in {BARE_MODULES!r}:\n"
        "    importlib.import_module(name)\n"
        "from recsys.models.bundle import load_bundle\n"
        "from recsys.models.ranking.ranker import History, Ranker\n"
        "from recsys.pipelines.training.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "(ranked,) = Ranker(load_bundle(Path(sys.argv[2]) / 'bundle')).recommend([History(['i1', 'i2'])], 3)\n"
        "assert len(ranked.item_ids) == 3 and ranked.source == 'model'\n"
    )
    done = python(code, str(tmp_path / "run.json"), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "bundle" in json.loads(done.stdout)


@pytest.mark.skipif(find_spec("torchrec") is None, reason="torchrec is not installed: pip install -e '.[torchrec]'")
def test_torchrec_imports_and_embeds_on_the_cpu() -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch\n"
        "from torchrec import EmbeddingConfig, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor\n"
        "table = EmbeddingConfig(name='table', embedding_dim=4, num_embeddings=10, feature_names=['item'])\n"
        "values, lengths = torch.tensor([1, 2, 3]), torch.tensor([2, 1])\n"
        "rows = EmbeddingCollection(tables=[table])(KeyedJaggedTensor(['item'], values, lengths=lengths))\n"
        "rows['item'].values().sum().backward()\n"
        "print(tuple(rows['item'].values().shape))\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(3, 4)"
