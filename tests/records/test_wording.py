from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

import pytest
from logged import EVAL, METRICS, NOTICE, STARTED, TIED, event

from localdpo.core.text import escaped, format_number, format_seconds, printable
from localdpo.records.events import Event
from localdpo.records.metrics import BY_NAME, metrics_of
from localdpo.records.rundir import RunDir
from localdpo.records.runs import summarise
from localdpo.records.wording import closing_lines, format_event, format_headline


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (STARTED, "run.started total_steps 60 model demo:model loss sigmoid device cpu"),
        (event("reference", done=8, total=64), "reference done 8 total 64"),
        (
            event("step", 12, metrics=METRICS),
            "step 12/60 loss 0.693 accuracy 0.5 margin - KL 0.0123",
        ),
        (
            EVAL,
            "eval 10/60 loss 0.693 accuracy 0.5 margin - KL 0.0123 seconds 1.5",
        ),
        (
            event("checkpoint", 20, path="checkpoints/step-000020", seconds=0.25),
            "checkpoint step 20/60 path checkpoints/step-000020 seconds 0.25",
        ),
        (NOTICE, "notice step 3/60 warning displacement: both\nfall | w | t"),
        (event("run.resumed", 20), "run.resumed step 20/60"),
        (
            event("control", id="0179", command="pause", ok=True, message="paused after step 2"),
            "control command pause ok True message paused after step 2",
        ),
        (event("run.failed", error="no  such\nmodel"), "run.failed error no such model"),
        (
            event("run.finished", 60, metrics={"loss": 0.5}, seconds=9.0),
            "run.finished step 60/60 loss 0.5 seconds 9",
        ),
    ],
)
def test_every_event_has_its_line(one: Event, line: str):
    assert format_event(one, 60) == line


def test_samples_are_not_for_a_log():
    assert format_event(event("samples", 0, samples=[]), 60) is None


def test_a_step_of_an_unknown_number_of_steps():
    assert format_event(event("step", 3, metrics={"loss": 1.0}), None) == "step 3 loss 1"


def test_the_line_of_a_step_has_few_numbers_and_the_time_left():
    values = dict.fromkeys(BY_NAME, 0.25) | {"learning_rate": 5e-6, "tokens_per_second": 2331.4}
    line = format_event(event("step", 12, metrics=values, kl_seconds=0.5), 60, 65.0)
    assert line == (
        "step 12/60 loss 0.25 accuracy 0.25 margin 0.25 KL 0.25 lr 5e-06 tokens/s 2331 ETA 1m 05s"
    )


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (EVAL, "evaluation at step 10/60: loss 0.693  accuracy 0.5  margin -  KL 0.0123"),
        (TIED, "evaluation at step 0/60: loss 0.693  accuracy all tied  KL 0"),
        (NOTICE, "warning displacement: both\nfall | w | t"),
        (STARTED, "run started: model demo:model loss sigmoid device cpu"),
        (event("run.resumed", 20), "resumed from step 20"),
        (event("data", source="pairs.jsonl", rows=4000), "pairs.jsonl: 4,000 rows tokenised so far"),
        (event("data"), "data: 0 rows tokenised so far"),
        (
            event("control", id="0179", command="pause", ok=True, message="paused after step 2"),
            "pause: paused after step 2",
        ),
        (event("control", id="0179", command=None, ok=False, message="no"), "command: no"),
        (event("run.continued", 2, reason="resume", seconds=9.0), None),
        (event("run.continued", 2, reason="sleep", seconds=65.0), "sleep: 1m 05s not counted"),
        (event("step", 12, metrics=METRICS), None),
        (event("samples", 0, samples=[]), None),
    ],
)
def test_above_the_bar_stands_what_matters(one: Event, line: str | None):
    assert format_headline(one, 60) == line


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (3, "3"), (0.00001, "1e-05"), (1234.5678, "1234.6"), (0.0, "0")]
)
def test_numbers(value: float | None, text: str):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (7620, "2h 07m")]
)
def test_times(seconds: float, text: str):
    assert format_seconds(seconds) == text


def test_text_from_a_model_cannot_steer_the_terminal():
    assert printable("a\x1b[31mb\n\tc\x07é") == "a\\x1b[31mb  c\\x07é"
    assert escaped("a\x9b\x7f\r\n\tb\ud800\u202e") == "a\\x9b\\x7f\\r\n\tb\\ud800\\u202e"


def test_every_character_that_steers_or_reorders_is_escaped():
    marks, embeddings = "\u200e\u200f\u061c", ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    for char in map(chr, range(0x10000)):
        steers = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t"
        reorders = unicodedata.bidirectional(char) in embeddings or char in marks
        shown = escaped(char)
        assert shown.isprintable() or char in "\n\t" or shown == char, ascii(char)
        assert shown != char or not (steers or reorders), ascii(char)


def test_text_of_every_script_stays_as_it_is():
    text = "naïve 日本語\u3000\xa0 שלום 👩\u200d🚀 می\u200cم \\x1b 👍🏽"
    assert escaped(text) == text


def test_at_the_end_stands_what_to_do_next():
    run = RunDir(Path("my runs/dpo"))
    lines = closing_lines(run, [event("run.finished", 60, seconds=65.0)])
    assert lines[:2] == ["finished in 1m 05s", "adapter: my runs/dpo/checkpoints/LATEST"]
    command = shlex.split(lines[2].removeprefix("try it: "))
    assert command == ["localdpo", "chat", "dpo", "--runs-dir", "my runs"]
    assert closing_lines(RunDir("runs/dpo"), [])[2] == "try it: localdpo chat dpo"


def test_an_accuracy_of_nothing_but_ties_is_told_and_leaves_a_gap() -> None:
    assert "accuracy all tied" in str(format_event(TIED, None))
    assert metrics_of(TIED)["rewards/accuracies"] is None
    assert TIED.data["metrics"]["rewards/accuracies"] == 0.0
    summary = summarise(RunDir("a"), [TIED], running=False)
    assert (summary.accuracy, summary.all_tied) == (None, True)


def test_objects_and_lists_in_a_line_are_words() -> None:
    started = event("run.started", rows={"train": 1500, "valid": 500}, ranks=["a", "b"])
    assert format_event(started, None) == "run.started rows.train 1500 rows.valid 500 ranks a, b"
    line = format_event(event("data", source="pairs.jsonl", rows=1000), None)
    assert line == "data source pairs.jsonl rows 1000 so far"
