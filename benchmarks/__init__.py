"""Measurements that a stranger can repeat. Each module runs by itself; `make bench` runs all of them."""
