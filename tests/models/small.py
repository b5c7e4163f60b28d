"""Small models of items, and every column that they may read beside the id."""

from typing import Any

V, D = 12, 16
SMALL: dict[str, Any] = {"d_model": D, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 10, "dropout": 0.0}
EVERYTHING: dict[str, Any] = {
    "event_types": True,
    "event_type_names": ["view", "buy"],
    "categories": True,
    "num_categories": 3,
    "frozen_vectors": True,
    "vector_width": 5,
    "id_dropout": 0.3,
}
