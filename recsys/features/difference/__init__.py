"""Two logs compared, such as two days: volume, columns, ids, event types, drift; each with a threshold."""
