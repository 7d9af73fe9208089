"""The dashboard: a terminal program that reads the files of runs. It loads no MLX, and training outlives it."""
