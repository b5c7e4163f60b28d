"""What a log or a prepared dataset holds: counts, shapes, order, ties, repeats, and what to do about them."""
