"""Full ranking, metrics, floors and intervals: how good a model is."""
