"""Pictures of data and of results; each needs matplotlib and says so where it is absent."""
