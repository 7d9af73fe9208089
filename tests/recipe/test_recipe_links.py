"""Links in a recipe are followed when a run is made, and a link that moves changes no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from localdpo.core.atomic import published_dir
from localdpo.core.errors import UserError
from localdpo.recipe.load import follow_links, followed
from localdpo.recipe.schema import Recipe
from localdpo.records.checkpoints import set_latest


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints of a run, LATEST at the first; a link to that run, and one to a model."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/sft/checkpoints", "models/v1"):
        Path(folder).mkdir(parents=True)
    save("step-000120")
    Path("runs/best").symlink_to("sft")
    Path("current").symlink_to(tmp_path / "models" / "v1")
    return tmp_path


def recipe(adapter: str | None = None, model: str = "org/tiny") -> Recipe:
    return Recipe.model_validate({"model": model, "adapter": adapter, "data": {"train": "pairs.jsonl"}})


def save(name: str) -> None:
    """A checkpoint of the run, with LATEST at it."""
    checkpoints = Path("runs/sft/checkpoints")
    with published_dir(checkpoints / name, 0) as folder:
        (folder / "adapters.safetensors").write_bytes(b"weights")
    set_latest(checkpoints / name)


def test_links_are_followed_and_other_paths_stay_as_they_were_written(here: Path) -> None:
    step = "runs/sft/checkpoints/step-000120"
    assert followed("runs/sft/checkpoints/LATEST") == step
    assert followed("runs/best/checkpoints/LATEST") == step
    assert followed(f"{here}/runs/best/checkpoints/LATEST") == f"{here}/{step}"
    assert followed("current") == f"{here}/models/v1"
    for plain in (step, f"./{step}/", "models/../models/v1", "org/tiny", "nowhere/at/all", "~/x", "/"):
        assert followed(plain) == plain
    Path("round").symlink_to("round")
    assert followed("round") == "round"
    found, lines = follow_links(recipe("demo:sft", "demo:model"))
    assert (found, lines) == (recipe("demo:sft", "demo:model"), [])


@pytest.mark.parametrize("link", ["runs/sft/checkpoints/LATEST", "runs/best/checkpoints/LATEST"])
def test_a_link_that_moved_does_not_move_the_run(link: str) -> None:
    kept, lines = follow_links(recipe(link))
    assert kept.adapter == "runs/sft/checkpoints/step-000120"
    assert lines == []
    assert follow_links(recipe(link), kept) == (kept, [])
    save("step-000240")
    again, (line,) = follow_links(recipe(link), kept)
    assert again == kept
    assert line == (
        f"adapter {link} leads to runs/sft/checkpoints/step-000240 now; "
        "this run keeps runs/sft/checkpoints/step-000120"
    )
    new, lines = follow_links(recipe(link))
    assert (new.adapter, lines) == ("runs/sft/checkpoints/step-000240", [])
    # The run's own recipe, and one that names the checkpoint.
    assert follow_links(kept, kept) == (kept, [])


def test_latest_is_the_newest_intact_checkpoint_wherever_it_points() -> None:
    save("step-000240")
    Path("runs/sft/checkpoints/LATEST").unlink()
    link = "runs/sft/checkpoints/LATEST"
    assert follow_links(recipe(link))[0].adapter == "runs/sft/checkpoints/step-000240"
    Path("runs/sft/checkpoints/step-000240/adapters.safetensors").write_bytes(b"weighty")
    found, (line,) = follow_links(recipe(link))
    assert found.adapter == "runs/sft/checkpoints/step-000120"
    assert "skipped a damaged checkpoint" in line
    Path("runs/sft/checkpoints/step-000120/manifest.json").unlink()
    with pytest.raises(UserError, match="damaged"):
        follow_links(recipe(link))


def test_another_start_is_another_recipe() -> None:
    kept, _ = follow_links(recipe("runs/sft/checkpoints/LATEST"))
    for other in ("runs/sft/checkpoints/step-000240", "models/v1", None, "runs/other/checkpoints/LATEST"):
        assert follow_links(recipe(other), kept)[0] != kept


def test_a_run_that_kept_a_link_still_goes_on() -> None:
    """As versions before did: its recipe is its recipe."""
    old = recipe("runs/sft/checkpoints/LATEST")
    save("step-000240")
    assert follow_links(old, old) == (old, [])
