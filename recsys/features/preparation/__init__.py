"""The steps of `prepare`, each over arrays or tables."""
