"""Public data sets by name: where they lie, on what terms, fetched whole or not at all."""
