"""64-bit ids to rows: a table without collisions that grows without a stop."""

from recsys.kernels.hash_table.reference import HashTableReference
from recsys.kernels.hash_table.table import HashTable, Inserted

__all__ = ["HashTable", "HashTableReference", "Inserted"]
