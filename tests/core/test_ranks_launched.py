"""Whether a process is one of several that were started together."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import localdpo

from localdpo.core.process import launched_rank


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"MLX_RANK": "x"}, None),
        # mlx.launch -n 1, and mpirun or srun with one process.
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "empty"}, None),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, 0),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "hosts"}, 0),
        ({"MLX_RANK": "0", "MLX_IBV_DEVICES": "hosts"}, 0),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "missing"}, 0),
        ({"MLX_RANK": "1", "MLX_HOSTFILE": "hosts"}, 1),
        ({"MLX_RANK": "1", "MLX_WORLD_SIZE": "2"}, 1),
    ],
)
def test_a_process_knows_its_rank_among_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], rank: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("hosts").write_text('[["10.0.0.1:1"], ["10.0.0.2:2"]]')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank


def test_only_training_is_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that carry out a sweep make one folder, and a worker that waits for another."""
    monkeypatch.setenv("MLX_RANK", "1")
    done = localdpo("sweep", "recipe.yaml", "loss.beta=0.1,0.2")
    assert done.returncode == 2
    assert done.stderr == (
        "error: sweep: only `train` is for several processes; start it without mlx.launch\n"
    )
    assert "no such recipe" in localdpo("train", "recipe.yaml", "--dry-run").stderr
