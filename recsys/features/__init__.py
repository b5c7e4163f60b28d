"""Logs into prepared datasets, prepared datasets into batches, and the journal."""
