"""Scripts that run inside a peer's venv and import nothing of ours. Each prints one JSON object as its last line."""
