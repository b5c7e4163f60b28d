"""Jobs: prepare, train, evaluate, recommend. A stage is a function from a config and paths to paths."""
