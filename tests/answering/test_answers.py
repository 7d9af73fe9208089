"""Answers of several adapters on one base: right, kept, resumed to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from answering_runs import mlx_lm_answers, mlx_lm_model, rows, run_folder
from tiny_folders import make_adapter, make_model_folder, recipe_text

from localdpo.answering import generator as room
from localdpo.answering import worker as answers_worker
from localdpo.answering.contestants import contestants
from localdpo.answering.generator import answer_all, plan_answers, prompt_seeds
from localdpo.core.atomic import write_manifest
from localdpo.core.errors import UserError
from localdpo.data.prompts import PromptRow
from localdpo.model.arrays import random_key, set_random_key
from localdpo.records.answers import (
    AnswerRecord,
    AnswersRequest,
    AnswersWriter,
    Sampling,
    answers_files,
    read_answers,
)
from localdpo.records.checkpoints import set_latest
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

GREEDY = Sampling(max_tokens=10)
DRAWN = Sampling(max_tokens=12, temperature=1.0, seed=5)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, sft_adapter: Path) -> RunDir:
    return run_folder(tmp_path / "runs" / "a", tiny_model, sft_adapter)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GROUP", 3)


def answered(run: RunDir, prompts: list[PromptRow], sampling: Sampling = GREEDY, **options: Any) -> Any:
    return answer_all(run, contestants(run, note=print), prompts, sampling, **options)


def texts(found: dict[str, list[AnswerRecord]]) -> dict[str, list[str]]:
    return {name: [record.text for record in records] for name, records in found.items()}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_each_model_answers_what_mlx_lm_answers_with_that_adapter(
    kind: str, tmp_path: Path, tiny_model: Path
) -> None:
    make_adapter(tmp_path / "sft", tiny_model, kind=kind)
    run = run_folder(tmp_path / "run", tiny_model, tmp_path / "sft", kind)
    found = texts(answered(run, rows()))
    folders = {"base": None, "sft": tmp_path / "sft", "dpo": run.checkpoint_path(3)}
    assert list(found) == list(folders)
    assert found == {name: mlx_lm_answers(tiny_model, folder, 10) for name, folder in folders.items()}
    assert len({tuple(answers) for answers in found.values()}) == 3


def test_adapters_of_different_shapes_share_one_base(tmp_path: Path, tiny_model: Path, run: RunDir) -> None:
    other = run_folder(tmp_path / "runs" / "dpo", tiny_model, None, "dora", seed=5)
    every = contestants(run, [other], note=print)
    assert [(one.name, one.label, one.role) for one in every] == [
        ("base", "base", "base"),
        ("sft", "SFT", "start"),
        ("dpo", "DPO", "trained"),
        ("run:dpo", "dpo", "other"),
    ]
    found = texts(answer_all(run, every, rows(), GREEDY))
    for one in every:
        assert found[one.name] == mlx_lm_answers(tiny_model, one.adapter, 10), one.name


def test_a_run_without_a_start_adapter_has_two(tmp_path: Path, tiny_model: Path) -> None:
    run = run_folder(tmp_path / "run", tiny_model, None)
    assert [one.name for one in contestants(run, note=print)] == ["base", "dpo"]


def test_a_run_on_demonstrations_trains_sft_from_start(
    tmp_path: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    run = run_folder(tmp_path / "run", tiny_model, sft_adapter, loss="sft")
    assert [(one.name, one.label) for one in contestants(run, note=print)] == [
        ("base", "base"),
        ("start", "start"),
        ("sft", "SFT"),
    ]
    ipo = run_folder(tmp_path / "ipo", tiny_model, None, loss="ipo")
    assert contestants(ipo, note=print)[-1].label == "IPO"


def test_answers_that_other_files_hold_are_not_generated_again(
    tmp_path: Path, tiny_model: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run_folder(tmp_path / "runs" / "b", tiny_model, None, "dora", seed=5)
    of_run, of_other = answered(run, rows(), DRAWN), answered(other, rows(), DRAWN)
    every = contestants(run, [other], note=print)
    generated = count_generated(monkeypatch)
    found = texts(answer_all(run, every, rows(), DRAWN, scores=False))
    assert found == {**texts(of_run), "run:b": texts(of_other)["dpo"]}
    assert generated == []
    # Drawn with another seed, or to other prompts: generated.
    answer_all(run, every, rows(), replace(DRAWN, seed=6), scores=False)
    answer_all(run, every, rows()[1:], DRAWN, scores=False)
    assert sum(generated) == 4 * len(rows()) + 4 * (len(rows()) - 1)
    # So is every answer of a model that lacks one, in a file that is damaged besides.
    generated.clear()
    [file] = answers_files(other.path)
    lines = file.read_bytes().splitlines(True)
    file.write_bytes(
        b"".join(line for line in lines if not line.startswith(b'{"prompt":0,"contestant":"dpo"'))
    )
    file.write_bytes(file.read_bytes() + b"{}\n")
    for own in answers_files(run.path):
        own.unlink()
    assert texts(answer_all(run, every, rows(), DRAWN, scores=False)) == found
    assert sum(generated) == 3 * len(rows())


def test_a_file_that_does_not_say_whose_answers_it_holds_gives_none(tmp_path: Path, run: RunDir) -> None:
    every = contestants(run, note=print)
    path, header = plan_answers(run, every, rows(), DRAWN)
    columns = tuple({"name": who.name, "label": who.label, "role": who.role} for who in every)
    other = path.with_name("0000000000000000.jsonl")
    path.parent.mkdir()
    with AnswersWriter(other, replace(header, key=other.stem, contestants=columns)) as writer:
        writer.answers(
            *(AnswerRecord(i, who.name, "x", 1, True) for i in range(len(rows())) for who in every)
        )
    assert not room.kept_answers(run, every, path, header)


def test_all_that_a_file_holds_is_taken_whatever_the_own_one_and_its_neighbours_hold(run: RunDir) -> None:
    every = contestants(run, note=print)
    path, header = plan_answers(run, every, rows(), DRAWN)
    answers = [AnswerRecord(i, who.name, "x", 1, True) for i in range(len(rows())) for who in every]
    other = path.with_name("0000000000000000.jsonl")
    path.parent.mkdir()
    with AnswersWriter(other, replace(header, key=other.stem)) as writer:
        writer.answers(*answers)
    # A resumed file may have the last answer of a model before an earlier one.
    with AnswersWriter(path, header) as writer:
        writer.answers(*answers[-len(every) :])
    path.with_name("folder.jsonl").mkdir()
    assert len(room.kept_answers(run, every, path, header)) == len(answers)


def count_generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each evaluation generates, from now on."""
    generate, counts = room.generate_apart, []

    def counted(model: Any, tokenizer: Any, prompts: list[Any], *others: Any, **options: Any) -> Any:
        counts.append(len(prompts))
        return generate(model, tokenizer, prompts, *others, **options)

    monkeypatch.setattr(room, "generate_apart", counted)
    return counts


def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    tmp_path: Path, tiny_model: Path, run: RunDir
) -> None:
    llama = make_model_folder(tmp_path / "llama", family="llama")
    other = run_folder(tmp_path / "runs" / "b", llama, None)
    with pytest.raises(UserError, match=r"--with b: its base is .*llama.*only runs on one base"):
        contestants(run, [other], note=print)
    twin = run_folder(tmp_path / "runs" / "c", tiny_model, None)
    with pytest.raises(UserError, match="--with c: this run is compared already"):
        contestants(run, [twin, twin], note=print)
    with pytest.raises(UserError, match="--with a: this run is compared already"):
        contestants(run, [run], note=print)
    empty = RunDir(tmp_path / "runs" / "d")
    empty.path.mkdir()
    empty.recipe.write_text(recipe_text(tiny_model, tmp_path / "pairs.jsonl"))
    with pytest.raises(UserError, match="no checkpoint to use yet"):
        contestants(run, [empty], note=print)


def test_what_went_missing_since_the_run_is_said(tmp_path: Path, tiny_model: Path) -> None:
    run = run_folder(tmp_path / "run", tiny_model, tmp_path / "gone")
    with pytest.raises(UserError, match="gone: no such folder"):
        contestants(run, note=print)


def test_log_probabilities_are_those_of_every_model(tiny_model: Path, run: RunDir) -> None:
    found = answered(run, rows(3), DRAWN)
    for reader in contestants(run, note=print):
        model, tokenizer = mlx_lm_model(tiny_model, reader.adapter)
        for records in found.values():
            for row, record in zip(rows(3), records, strict=True):
                messages = [{"role": "user", "content": row.text}]
                prompt = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
                logits = model(mx.array([prompt + list(record.ids)]))[0].astype(mx.float32)
                logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                own = [logps[len(prompt) - 1 + t, token].item() for t, token in enumerate(record.ids)]
                assert record.logps[reader.name] == pytest.approx(sum(own) / len(own), abs=1e-4)


def test_records_say_length_and_end(run: RunDir) -> None:
    found = answered(run, rows(6), Sampling(80, 3.0, 1))
    records = [record for each in found.values() for record in each]
    assert {record.finished for record in records} == {True, False}
    for record in records:
        assert record.tokens == len(record.ids) - record.finished
        assert record.finished or record.tokens == 80


def test_what_is_on_disk_is_not_made_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answered(run, rows(), DRAWN)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(room, "load_base", refuse)
    seen: list[AnswerRecord] = []
    assert answered(run, rows(), DRAWN, on_answer=seen.append) == first
    assert len(seen) == 6


@pytest.mark.parametrize(
    "changed",
    [{"seed": 6}, {"temperature": 0.9}, {"max_tokens": 13}],
    ids=["seed", "temperature", "max_tokens"],
)
def test_other_sampling_is_another_file(changed: dict[str, Any], run: RunDir) -> None:
    every = contestants(run, note=print)
    path, header = plan_answers(run, every, rows(), DRAWN)
    assert plan_answers(run, every, rows(), replace(DRAWN, **changed))[0] != path
    assert plan_answers(run, every, rows()[::-1], DRAWN)[0] != path
    assert plan_answers(run, every[:2], rows(), DRAWN)[0] != path
    assert plan_answers(run, every, rows(), DRAWN, source="elsewhere")[0] == path
    assert header.key == path.stem


def test_another_checkpoint_is_another_file(run: RunDir, tiny_model: Path) -> None:
    path, _ = plan_answers(run, contestants(run, note=print), rows(), DRAWN)
    make_adapter(run.checkpoint_path(4), tiny_model, seed=78)
    write_manifest(run.checkpoint_path(4))
    set_latest(run.checkpoint_path(4))
    assert plan_answers(run, contestants(run, note=print), rows(), DRAWN)[0] != path


def test_nothing_to_ask_is_a_mistake(run: RunDir) -> None:
    with pytest.raises(ValueError, match="at least one"):
        plan_answers(run, contestants(run, note=print), [], GREEDY)


def test_a_prompt_that_comes_twice_is_drawn_twice() -> None:
    one, other = rows()
    seeds = prompt_seeds([one, other, one], 0)
    assert len(set(seeds)) == 3
    assert prompt_seeds([other, one], 0) == [seeds[1], seeds[0]]
    assert prompt_seeds([one], 1) != seeds[:1]


def prefixes(whole: bytes) -> Iterator[bytes]:
    """What kills may have left: cut after some lines, and within some."""
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for end in [*ends[::9], *(end - 9 for end in ends[1::11])]:
        yield whole[:end]


@pytest.mark.usefixtures("small_groups")
def test_wherever_it_was_cut_the_file_ends_the_same(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = rows(5)
    first = answered(run, prompts, DRAWN)
    (path,) = answers_files(run.path)
    whole = path.read_bytes()
    asked: list[int] = []
    generate_apart = room.generate_apart

    def counted(*args: Any, **options: Any) -> Any:
        asked.append(len(args[2]))
        return generate_apart(*args, **options)

    monkeypatch.setattr(room, "generate_apart", counted)
    for kept in prefixes(whole):
        path.write_bytes(kept)
        asked.clear()
        assert answered(run, prompts, DRAWN) == first
        assert path.read_bytes() == whole
        # No group that was complete is generated again: at most what is missing and one group's answers.
        missing = 15 - sum(b'"contestant":' in line for line in kept.split(b"\n")[1:-1])
        assert sum(asked) <= missing + 2


@pytest.mark.usefixtures("small_groups")
def test_log_probabilities_can_come_later(run: RunDir) -> None:
    bare = answered(run, rows(4), DRAWN, scores=False)
    assert all(not record.logps for each in bare.values() for record in each)
    full = answered(run, rows(4), DRAWN)
    assert texts(full) == texts(bare)
    assert all(set(record.logps) == {"base", "sft", "dpo"} for each in full.values() for record in each)


def test_answers_are_told_as_they_finish(run: RunDir) -> None:
    seen: list[tuple[int, str, int]] = []

    def told(record: AnswerRecord) -> None:
        (path,) = answers_files(run.path)
        seen.append((record.prompt, record.contestant, len(read_answers(path).records)))

    answered(run, rows(3), DRAWN, on_answer=told)
    assert [count for _, _, count in seen] == list(range(1, 10)), "each is on disk when it is told"
    assert [name for _, name, _ in seen] == ["base"] * 3 + ["sft"] * 3 + ["dpo"] * 3


def test_the_global_random_state_is_left_alone(run: RunDir) -> None:
    set_random_key((3, 4))
    answered(run, rows(), DRAWN)
    assert random_key() == (3, 4)


@pytest.mark.long
def test_killed_generation_goes_on_to_the_same_file(run: RunDir, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row.prompt, "n": 1}) + "\n" for row in rows(12)))
    request = AnswersRequest(run.path, str(prompts), sampling=Sampling(40, 1.0, 2))
    command = [sys.executable, "-m", answers_worker.__name__, request.to_json()]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    worker = start()
    assert worker.stdout is not None
    line = worker.stdout.readline().decode()
    path = Path(json.loads(line.removeprefix("answers ")))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.is_file() and path.read_bytes().count(b"\n") > 12):
        time.sleep(0.001)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    left = path.read_bytes()
    assert 12 < left.count(b"\n") < 1 + 12 * 3
    resumed = start()
    output, _ = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, output.decode()
    finished = path.read_bytes()
    complete = left[: left.rfind(b"\n") + 1]
    assert finished.startswith(complete)
    path.unlink()
    answers_worker.main(request)
    assert path.read_bytes() == finished
    assert read_answers(path).complete


def test_the_worker_says_what_a_person_can_mend(run: RunDir, tmp_path: Path) -> None:
    request = AnswersRequest(run.path, str(tmp_path / "nothing.jsonl"))
    done = subprocess.run(
        [sys.executable, "-m", answers_worker.__name__, request.to_json()],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "no such file" in done.stderr
