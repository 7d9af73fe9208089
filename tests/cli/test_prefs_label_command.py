"""`localdpo prefs label`: how labels stand, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from localdpo.cli.main import app
from localdpo.cli.prefs import journal_of
from localdpo.core.errors import UserError
from localdpo.prefs.label import open_labelling

runner = CliRunner()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_how_the_labels_stand(pairs: Path) -> None:
    state = open_labelling(str(pairs), journal_of(str(pairs)), again=0.0)
    for wanted in ("chosen", "chosen", "chosen", "rejected"):
        now = state.current
        assert now is not None
        state.answer("1" if (wanted == "chosen") != now.swapped else "2")
    state.flag()
    now = state.current
    assert now is not None
    result = runner.invoke(app, ["prefs", "label", str(pairs), "--plain"])
    assert result.exit_code == 0
    assert "answered: 4 of 6 (" in result.output
    assert "agreement with the data: 75%, kappa " in result.output
    assert f"flagged rows: {now.item.row}" in result.output
    assert "with yourself" not in result.output


def test_decided_pairs_are_written_as_labelled(pairs: Path, tmp_path: Path) -> None:
    state = open_labelling(str(pairs), journal_of(str(pairs)), again=0.0)
    wanted: dict[int, str] = {}
    for preferred in ("chosen", "rejected", "tie", "rejected"):
        now = state.current
        assert now is not None
        if preferred != "tie":
            wanted[now.item.row] = preferred
        if preferred == "rejected":
            state.note("why")
        state.answer("tie" if preferred == "tie" else "1" if (preferred == "chosen") != now.swapped else "2")
    out = tmp_path / "labelled.jsonl"
    command = ["prefs", "label", str(pairs), "--plain", "--out", str(out)]
    result = runner.invoke(app, command)
    assert f"written: {out}, 3 pairs" in result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["label"]["row"] for row in rows] == sorted(wanted)
    for row in rows:
        number, agrees = row["label"]["row"], wanted[row["label"]["row"]] == "chosen"
        sides = [f"good {number - 1}", f"bad {number - 1}"]
        assert [row["chosen"], row["rejected"]] == (sides if agrees else sides[::-1])
        assert row["label"] == {"row": number, "agrees": agrees} | ({} if agrees else {"note": "why"})
    again = runner.invoke(app, command)
    assert "exists already" in str(again.exception)


def test_an_answer_that_was_cut_is_never_written_as_the_chosen_one(pairs: Path, tmp_path: Path) -> None:
    rows = [
        json.loads(line) | {"rejected_finish_reason": "length"} for line in pairs.read_text().splitlines()
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = open_labelling(str(pairs), journal_of(str(pairs)), again=0.0)
    agreed = []
    for wanted in ("chosen", "rejected", "chosen"):
        now = state.current
        assert now is not None
        if wanted == "chosen":
            agreed.append(now.item.row)
        state.answer("1" if (wanted == "chosen") != now.swapped else "2")
    out = tmp_path / "labelled.jsonl"
    result = runner.invoke(app, ["prefs", "label", str(pairs), "--plain", "--out", str(out)])
    assert "left out: 1 pair whose preferred answer was cut at a limit of tokens" in result.output
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["label"]["row"], row["rejected_finish_reason"]) for row in written] == [
        (row, "length") for row in sorted(agreed)
    ]


def test_the_pairs_do_not_replace_the_labels(pairs: Path) -> None:
    journal = journal_of(str(pairs))
    state = open_labelling(str(pairs), journal, again=0.0)
    state.answer("1")
    before = journal.read_bytes()
    result = runner.invoke(app, ["prefs", "label", str(pairs), "--plain", "--out", str(journal), "--force"])
    assert isinstance(result.exception, UserError)
    assert result.exception.message == f"--out {journal}: the labels are kept there; give another name"
    assert journal.read_bytes() == before


def test_it_takes_a_terminal(pairs: Path) -> None:
    result = runner.invoke(app, ["prefs", "label", str(pairs)])
    assert isinstance(result.exception, UserError)
    assert "labelling takes a terminal" in str(result.exception)
    assert not journal_of(str(pairs)).exists()


def test_labels_that_are_not_there_are_said(pairs: Path) -> None:
    result = runner.invoke(app, ["prefs", "label", str(pairs), "--plain"])
    assert isinstance(result.exception, UserError)
    assert "no labels there yet" in str(result.exception)


def test_the_journal_of_a_name_has_no_folder_in_it() -> None:
    assert journal_of("demo:preferences/valid") == Path("valid.labels.jsonl")
    assert journal_of("org/name[config]:split") == Path("name[config]-split.labels.jsonl")
