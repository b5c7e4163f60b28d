"""Simulated worlds whose truth is known."""
