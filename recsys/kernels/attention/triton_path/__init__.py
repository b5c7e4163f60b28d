"""The Triton path of `jagged_attention`: its kernels, and what allocates for them and launches them."""
