"""A collisionless embedding table: rows by 64-bit id that train, age, grow and go."""

from recsys.kernels.row_pages import RowOptimizer
from recsys.models.embedding_table.admission import AdmissionConfig
from recsys.models.embedding_table.config import TableConfig
from recsys.models.embedding_table.ids import FeatureIds, IdCheck, string_ids
from recsys.models.embedding_table.module import CollisionlessEmbedding
from recsys.models.embedding_table.prior import CategoryPrior, Prior, TextPrior
from recsys.models.embedding_table.table import EmbeddingTable

__all__ = [
    "AdmissionConfig",
    "CategoryPrior",
    "CollisionlessEmbedding",
    "EmbeddingTable",
    "FeatureIds",
    "IdCheck",
    "Prior",
    "RowOptimizer",
    "TableConfig",
    "TextPrior",
    "string_ids",
]
