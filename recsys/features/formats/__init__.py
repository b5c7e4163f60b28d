"""Files of each format as raw rows: whole, numbered, nothing dropped. `recsys.features.readers` gives them meaning."""
