"""Floors and models on one log at equal budget, and which of them to take."""
