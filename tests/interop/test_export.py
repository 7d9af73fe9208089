"""An export is there in full and checked, or not at all; nothing else is ever replaced."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from command import localdpo
from exported_runs import add_checkpoint, make_run
from huggingface_hub import ModelCard
from tiny_folders import recipe_text, write_rows

from localdpo.core import atomic
from localdpo.core.atomic import verified_digests, write_manifest
from localdpo.core.errors import LocalDPOError
from localdpo.interop import check, export
from localdpo.interop.export import ExportRequest
from localdpo.interop.folder import RECORD, Artefact, check_place
from localdpo.interop.targets import TARGETS, Settings
from localdpo.interop.trained import Trained, open_trained
from localdpo.model.arrays import load_arrays
from localdpo.records.log import decode
from localdpo.records.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path, quantised_model: Path, own_cache: Path) -> RunDir:
    return make_run(tmp_path, quantised_model)


def quiet(line: str) -> None:
    pass


def entries_of(run: RunDir) -> list[dict[str, Any]]:
    return [decode(line) for line in run.exports.read_bytes().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.every(3)
def test_every_target_is_written_and_checked(name: str, run: RunDir, tmp_path: Path) -> None:
    """What keeps the numbers keeps the margin; a record is in the artefact and in the run."""
    target = TARGETS[name]
    done = export.export(ExportRequest(run, name, tmp_path / name), quiet)
    assert done.written
    assert done.check.passed
    assert done.check.kept == pytest.approx(1.0, abs=0.05)
    assert done.check.measure == "margin"
    assert done.path == tmp_path.joinpath(name, *target.place, *(["r"] if target.place else []))
    assert verified_digests(done.path)[1] == []
    assert json.loads((done.path / RECORD).read_text()) == done.record
    assert (done.path / "tokenizer.json").is_file() == (target.library != "gguf")
    entry = entries_of(run)[-1]
    assert entry["target"] == name
    if name in ("peft", "gguf-lora"):
        assert entry["check"]["largest_difference"] == 0.0
    if name == "hf":  # 16 bits for transformers, although the scales of the base are float32
        weights = load_arrays(done.path / "model.safetensors")
        assert {array.dtype for array in weights.values()} == {mx.float16}
        assert json.loads((done.path / "config.json").read_text())["torch_dtype"] == "float16"
    assert not list(tmp_path.glob("*/.*"))


def test_the_help_names_every_target() -> None:
    from localdpo.cli.export import TARGET_HELP

    assert all(name in TARGET_HELP for name in TARGETS)


@pytest.mark.slow
@pytest.mark.long
def test_the_command_prints_the_table_and_where(run: RunDir, tmp_path: Path) -> None:
    runs = ["--runs-dir", str(run.path.parent)]
    done = localdpo("export", "r", "--to", "mlx", "--out", str(tmp_path / "out"), *runs)
    assert done.returncode == 0, done.stderr
    for words in ("4 held-out pairs", "base + adapter", "margin kept", "greedy answers equal", "written: "):
        assert words in done.stdout
    again = localdpo("export", "r", "--out", str(tmp_path / "out"), *runs)
    assert (again.returncode, "--force to replace it" in again.stderr) == (2, True)
    forced = localdpo("export", "r", "--out", str(tmp_path / "out"), "--json", "--force", *runs)
    record = json.loads(forced.stdout)
    assert (record["target"], record["written"], record["check"]["passed"]) == ("mlx", True, True)


@pytest.mark.slow
def test_what_loses_too_much_is_not_there_unless_forced(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 2 bits, hardly anything of a layer stays."""
    monkeypatch.setattr(check, "LEAST_KEPT", 1e6)
    out, runs = tmp_path / "out", ["--runs-dir", str(run.path.parent)]
    failed = localdpo("export", "r", "--bits", "2", "--out", str(out), *runs)
    assert failed.returncode == 1
    assert "failed, nothing written" in failed.stdout
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    forced = localdpo("export", "r", "--bits", "2", "--out", str(out), "--force", *runs)
    assert forced.returncode == 0
    assert "warning: it keeps" in forced.stdout
    assert "**This export failed its check**" in (out / "README.md").read_text()
    assert [entry["written"] for entry in entries_of(run)] == [False, True]
    assert json.loads((out / RECORD).read_text())["check"]["passed"] is False


@pytest.mark.slow
def test_an_export_without_the_adapter_fails(
    run: RunDir, tmp_path: Path, quantised_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is of what lies on the disk: a folder with the base in it keeps nothing."""
    target = TARGETS["mlx"]

    def forgetful(trained: Trained, settings: Settings) -> Artefact:
        def write(folder: Path) -> list[str]:
            shutil.copytree(quantised_model, folder, dirs_exist_ok=True)
            return []

        return Artefact(1000, write)

    monkeypatch.setitem(TARGETS, "mlx", replace(target, prepare=forgetful))
    done = export.export(ExportRequest(run, "mlx", tmp_path / "out"), quiet)
    assert not done.written
    assert done.check.kept == pytest.approx(0.0, abs=1e-6)


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "onnx"], "--to onnx: expected one of mlx, peft, hf, lmstudio, gguf, "),
        (["--to", "peft", "--bits", "4"], "--bits: --to peft has no use for it"),
        (["--dtype", "float32"], "--dtype: --to mlx has no use for it; it is for --to hf"),
        (["--bits", "4", "--dequantize"], "give one of the two"),
        (["--bits", "7"], "--bits 7: expected one of 2, 3, 4, 5, 6, 8"),
        (["--checkpoint", "99"], "expected one of the run's checkpoints; there are: step-000020"),
        (["--yes"], "there is no --push to confirm"),
        (["--push", "me/model"], "nobody can be asked here; give --yes"),
    ],
)
def test_mistakes_are_said_before_any_work(run: RunDir, arguments: list[str], words: str) -> None:
    result = localdpo("export", "r", "--runs-dir", str(run.path.parent), *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert not run.exports.exists()


def test_nothing_but_an_earlier_export_is_replaced(run: RunDir, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    link = tmp_path / "link"
    link.symlink_to(precious)
    file = tmp_path / "file"
    file.write_text("x")
    for out, words in ((precious, "exists already, without"), (link, "this is a link"), (file, "without")):
        with pytest.raises(LocalDPOError, match=words):
            export.export(ExportRequest(run, "peft", out, force=True), quiet)
    assert (precious / "thesis.txt").read_text() == "all of it"
    assert link.is_symlink()


def test_what_is_in_an_earlier_export_or_is_the_base_is_not_lost(run: RunDir, tmp_path: Path) -> None:
    place, base = tmp_path / "made", tmp_path / "base"
    for folder in (place, base):
        folder.mkdir()
        (folder / RECORD).write_text("{}")
        write_manifest(folder)
    check_place(place, 1, [base], force=True)
    (place / ".DS_Store").write_text("")
    check_place(place, 1, [base], force=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(LocalDPOError, match=r"notes.txt in it is not of an export"):
        check_place(place, 1, [base], force=True)
    for used in (base, base / "model.gguf", tmp_path / "x" / ".." / "base"):
        with pytest.raises(LocalDPOError, match="the run's own base model is there"):
            check_place(base, 1, [used], force=True)


def test_a_full_disk_is_said_before_the_rows_are_scored(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "free_bytes", lambda path: 1000)
    with pytest.raises(LocalDPOError, match="no space left on the disk"):
        export.export(ExportRequest(run, "mlx", tmp_path / "out"), quiet)


def test_an_adapter_needs_the_room_of_an_adapter(run: RunDir, tmp_path: Path) -> None:
    artefact = TARGETS["peft"].prepare(open_trained(run, None, quiet), Settings())
    (tmp_path / "adapter").mkdir()
    artefact.write(tmp_path / "adapter")
    written = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert written <= artefact.size <= written + 2**20


def test_a_folder_that_cannot_be_written_is_said(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocalDPOError, match="file: is a file, so nothing can be written below it"):
        export.export(ExportRequest(run, "peft", tmp_path / "file" / "out"), quiet)


def test_an_adapter_that_changes_nothing_is_no_export(
    tmp_path: Path, quantised_model: Path, own_cache: Path
) -> None:
    run = make_run(tmp_path, quantised_model)
    weights = run.checkpoints / "step-000020" / "adapters.safetensors"
    adapter = {
        name: mx.zeros_like(w) if name.endswith("lora_b") else w for name, w in mx.load(str(weights)).items()
    }
    # Read before the file is written anew.
    mx.eval(adapter)
    mx.save_safetensors(str(weights), adapter)
    write_manifest(weights.parent)
    with pytest.raises(LocalDPOError, match="changes none of the 4 held-out rows"):
        export.export(ExportRequest(run, "peft", tmp_path / "out"), quiet)


# --- which adapter, which rows -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_another_checkpoint_can_be_named(run: RunDir, tmp_path: Path, quantised_model: Path) -> None:
    add_checkpoint(run, quantised_model, 40, seed=9)
    done = {
        name: export.export(ExportRequest(run, "peft", tmp_path / str(name), checkpoint=name), quiet)
        for name in (None, "20")
    }
    assert [entry.record["checkpoint"] for entry in done.values()] == ["step-000040", "step-000020"]


@pytest.mark.slow
@pytest.mark.every(2)
@pytest.mark.parametrize("loss", ["sft", "kto"])
def test_rows_that_are_no_pairs_are_checked_by_their_gain(
    loss: str, tmp_path: Path, quantised_model: Path, own_cache: Path
) -> None:
    rows = [
        {
            "prompt": f"Question {n}?",
            "completion": f"It is {'good' if n % 2 else 'bad'}.",
            "label": n % 2 == 0,
        }
        for n in range(8)
    ]
    if loss == "sft":
        rows = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    text = recipe_text(quantised_model, data, data, loss=loss)
    run = RunDir.create(tmp_path / "runs", loss, text)
    add_checkpoint(run, quantised_model, 5)
    done = export.export(ExportRequest(run, "mlx", tmp_path / "out"), quiet)
    assert (done.check.measure, done.check.accuracies) == ("gain", None)
    assert done.check.kept == pytest.approx(1.0, abs=0.05)


# --- the card ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_card_says_what_is_known_and_no_folder_of_this_machine(
    tmp_path: Path, quantised_model: Path, own_cache: Path
) -> None:
    base = tmp_path / "private" / "base"
    shutil.copytree(quantised_model, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/original\n---\n# It\n")
    run = make_run(tmp_path / "private", base)
    done = export.export(ExportRequest(run, "peft", tmp_path / "out"), quiet)
    text = (done.path / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "base_model": "org/original",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["localdpo", "dpo", "lora"],
    }
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/original"
    assert 'from_pretrained(AutoModelForCausalLM.from_pretrained("org/original"), "out")' in text
    assert "licence: not stated" in text  # of the data
    assert "model: base\n" in text
    for path in done.path.glob("*.*"):
        if path.suffix in (".md", ".json"):
            assert str(tmp_path) not in path.read_text(), path.name
