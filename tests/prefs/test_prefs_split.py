"""`prefs split`: two files, no prompt in both, every row in one of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from clean_pairs import clean_rows, write

from localdpo.core.errors import UserError, UserErrors
from localdpo.prefs.check import CheckSettings, check
from localdpo.prefs.rewrite import split


def rows_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_prompt_is_in_both(tmp_path: Path) -> None:
    rows = clean_rows(60)
    # The same question once more: word for word, in other case and space, behind a system message.
    for old, new in zip(rows[:6], clean_rows(6, seed=1), strict=True):
        rows.append({**new, "prompt": old["prompt"], "score": 1})
        rows.append({**new, "prompt": f"  {old['prompt'].upper()} "})
        system = {"role": "system", "content": "Be brief."}
        rows.append({**new, "prompt": [system, {"role": "user", "content": old["prompt"]}]})
    source = write(tmp_path / "in.jsonl", rows)
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    done = split(source, train, valid, fraction=0.3)
    assert (done.train + done.valid, done.prompts, done.skipped) == (78, 60, {})
    assert 18 <= done.valid <= 23
    assert len(rows_in(valid)) == done.valid
    # Every row is in one of the files, in its place.
    sides = [rows_in(train), rows_in(valid)]
    for row in rows:
        assert [side.pop(0) for side in sides if side and side[0] == row] == [row]
    report = check(str(train), CheckSettings(against=(str(valid),)))
    assert not [result for result in report.results if result.check.name.startswith("overlap")]
    split(source, train, tmp_path / "other.jsonl", fraction=0.3, seed=1, force=True)
    assert rows_in(tmp_path / "other.jsonl") != rows_in(valid)


def test_what_a_killed_command_left_goes_with_the_next(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", clean_rows(20))
    left, living = (tmp_path / f".train.jsonl.tmp-{digit * 12}" for digit in "01")
    for path in (left, living):
        path.touch()
    os.utime(left, (0, 0))
    split(source, tmp_path / "train.jsonl", tmp_path / "valid.jsonl")
    assert (left.exists(), living.exists()) == (False, True)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q {}"}, {"role": "assistant", "content": "a"}]},
        {"prompt": "q {}", "completion": "a", "label": True},
        {"prompt": "q {}"},
    ],
)
def test_rows_of_other_kinds(row: dict[str, Any], tmp_path: Path) -> None:
    rows = [json.loads(json.dumps(row).replace("{}", str(i))) for i in range(10)]
    source = write(tmp_path / "in.jsonl", rows)
    done = split(source, tmp_path / "train.jsonl", tmp_path / "valid.jsonl", count=3)
    assert (done.train, done.valid, done.prompts) == (7, 3, 10)


def test_what_cannot_be_split(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl", [*clean_rows(1) * 4, '{"prompt": 1, "chosen": "a", "rejected": "b"}']
    )
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    with pytest.raises(UserErrors, match=r"in\.jsonl:5 prompt: expected text"):
        split(source, train, valid)
    source = write(tmp_path / "in.jsonl", clean_rows(1) * 4)
    with pytest.raises(UserError, match=r"4 rows of 1 prompt; with 2 rows held out one part"):
        split(source, train, valid, count=2)
    with pytest.raises(UserError, match="given twice"):
        split(source, train, train)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
