"""OpenBLAS, where the system has it, must be loaded before anything imports MLX."""

from localdpo.model.backend import prepare

prepare()
