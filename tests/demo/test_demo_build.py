from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from localdpo.core.errors import UserError
from localdpo.core.names import BUNDLE, resolve
from localdpo.demo import build, dataset
from localdpo.demo.dataset import Incident
from localdpo.model.backend import device_name

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def heldout(count: int) -> list[Incident]:
    return dataset.split_incidents(build.SEED)["prompts/heldout"][:count]


def test_keeping_a_model_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--out", str(tmp_path), "--keep-model"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --keep-model: ")
    assert error.count("\n") == 1


@pytest.mark.long
def test_a_failed_sft_run_shows_what_the_worker_said(tmp_path: Path) -> None:
    incidents = dataset.split_incidents(0, {"demonstrations/train": 4, "demonstrations/valid": 2})
    build.make_demonstrations(tmp_path, incidents, 0)
    with pytest.raises(UserError, match=r"the SFT run failed \(2\): error: model .*no such folder"):
        build.train_sft(tmp_path, 0, lambda line: None)
    assert not (tmp_path / "sft").exists()


def test_an_adapter_is_published_without_training_state(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("adapters.safetensors", "optimizer.safetensors", "state.json"):
        (checkpoint / name).write_text(name)
    (checkpoint / "adapter_config.json").write_text(json.dumps({"model": "/somewhere", "num_layers": 4}))
    build.publish_adapter(checkpoint, tmp_path / "sft")
    names = {file.name for file in (tmp_path / "sft").iterdir()}
    assert names == {"adapters.safetensors", "adapter_config.json", "manifest.json"}
    config = json.loads((tmp_path / "sft" / "adapter_config.json").read_text())
    assert config == {"model": "demo:model", "num_layers": 4}


def demo_folder(folder: Path) -> Path:
    """A folder with the bundle's model and SFT adapter."""
    for name in ("model", "sft"):
        shutil.copytree(BUNDLE / name, folder / name)
    return folder


@pytest.mark.skipif(device_name() != "cpu", reason="the pairs were drawn on the CPU backend in float32")
@pytest.mark.long
def test_pairs_are_what_prefs_build_makes_of_the_sft_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pairs of the bundle, bit for bit: a group of prompts depends on no later one."""
    monkeypatch.setattr(dataset, "KEPT", {"preferences/valid": 8})
    prompts = dataset.split_incidents(build.SEED)["preferences/valid"][:32]
    # Its seed is that of the second data set.
    build.make_preferences(
        demo_folder(tmp_path), {"preferences/valid": prompts}, build.SEED + 1, lambda line: None
    )
    made = (tmp_path / "preferences/valid.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in made]
    stored = dataset.read_rows(resolve("demo:preferences/valid"))[:8]
    for row in [*rows, *stored]:
        assert row["provenance"].pop("seed") == build.SEED + 1
    assert rows == stored


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"400 pairs wanted, only \d of 2 prompts made one"):
        build.make_preferences(demo_folder(tmp_path), {"preferences/train": heldout(2)}, 0, lambda line: None)


def test_keeping_an_adapter_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(BUNDLE / "model", tmp_path / "model")
    assert build.main(["--out", str(tmp_path), "--keep-sft"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --keep-sft: ")
    assert error.count("\n") == 1


def test_the_build_trains_as_the_recipe_does() -> None:
    recipe = yaml.safe_load((RECIPES / "sft.yaml").read_text())
    assert recipe["loss"] == build.SFT_SETTINGS["loss"]
    for section in ("train", "lora"):
        said = {name: float(value) for name, value in recipe[section].items()}
        assert said.items() >= build.SFT_SETTINGS[section].items()


def test_the_bundle_holds_no_path_of_the_machine_that_made_it() -> None:
    config = json.loads((resolve("demo:sft") / "adapter_config.json").read_text())
    assert config["model"] == "demo:model"
    for file in BUNDLE.rglob("*.json*"):
        assert "/tmp/" not in file.read_text()
