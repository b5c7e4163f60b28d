"""Tensors in, tensors out: attention over jagged sequences and cross entropy over a whole catalogue.

Needs torch, numpy and the standard library alone.
"""
