"""Readers of text formats: lines in blocks, whatever the size of the file."""
