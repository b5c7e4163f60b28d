"""What the benchmarks share: logs, sets, published figures, processes timed, results written down."""
