"""The dashboard: a terminal program that reads the files of runs, loads no MLX and never stops training."""
