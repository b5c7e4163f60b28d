"""What kernels that numba compiles stand on."""
