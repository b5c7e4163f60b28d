"""The torch path of `jagged_attention`: fast on the CPU, right on any device."""
