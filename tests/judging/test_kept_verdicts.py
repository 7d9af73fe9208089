"""Verdicts that earlier versions were paid for are found again: same keys, same lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from localdpo.judging import mlx
from localdpo.judging.base import Question
from localdpo.judging.registry import JudgeRequest, make_judge
from localdpo.judging.rubric import Mode
from localdpo.judging.run import Journal, key_of
from localdpo.records.verdicts import Usage, Verdict

QUESTIONS: dict[Mode, Question] = {
    "pairwise": Question("q1", "Which is it?\n\nuser: é", ("one", "two"), {"facts": {"a": 1}}),
    "score": Question("q1", "Which is it?", ("one",)),
}
SERVER = "openai:http://127.0.0.1:8080/v1#local"
CLAUDE = "anthropic:claude-opus-5-5"
# Keys of version 0.1. One that changes throws away every verdict that was given under it: only a change of
# what the judge is asked may do that.
KEYS: dict[tuple[str, Mode, str | None], str] = {
    ("rules", "pairwise", None): "136eeb1bc1f06a62c2297be3af369e2138f5bb25ecacff517cdc2c3bceeaab96",
    ("rules", "score", None): "4862a0f60c8b07cf8f383a0f63950c2ec028efcd228e9a14c638ebb258cde9e8",
    (CLAUDE, "pairwise", None): "f4edee34c697a2b6851db5c72473e215c413f3792ebdc9c70c91f27b06fc65fb",
    (CLAUDE, "pairwise", "assistant"): "642c63d991927254210facecc16250f7be6dbc73b012237ff63db85500ef7ad3",
    (CLAUDE, "score", None): "0b421f2b7da471d771ae7a42bb36d39bb819ec996a837470f676a92a5f03028e",
    (CLAUDE, "score", "assistant"): "6dfdc21564edae71751e121632a0a607cf59796a7127ef23c453d1822d823d99",
    (SERVER, "pairwise", None): "360157aa9995ac6a270ede2301fc5e9f0d7120468e94cdde3af393874aefdc32",
    (SERVER, "pairwise", "assistant"): "e180b9766d7d9ca539c799cc947a6dfb2a8a329aa75284e6bf23586e6ee376de",
    (SERVER, "score", None): "38b67b6771bdafee998818215f6c53f649d9714f25713830b9f09c7c6e3abce4",
    (SERVER, "score", "assistant"): "6a08fd42271fdf005a9eca7e8c2871a4e5a861257ced1966c7c84ebab51dfbd8",
    ("mlx:demo:model", "pairwise", None): "40459c5b33269410a9d13d7e1c1f70929b77f458dbe47465a7789b22f711a55c",
    ("mlx:demo:model", "score", None): "e886fe9fe611e4160c996ba67ab98c3f92b9ade50e5be5567f64c969b624910c",
}
BATCH = "63084aaf2960380c6affb8cfc09f0ebec1131446cacc485ef4d56ead3e58024e"
LINE = (
    '{"v":1,"time":1795702821.504,"key":"136eeb1bc1f06a62c2297be3af369e2138f5bb25ecacff517cdc2c3bceeaab96",'
    '"judge":"rules","identity":{"judge":"rules","version":"1"},"question":{"id":"q1","prompt":"Which is it?'
    '\\n\\nuser: é","answers":["one","two"]},"verdict":{"status":"ok","choice":"second","score":null,'
    '"reason":"so","principle":"brief","usage":{"input_tokens":5,"output_tokens":2,"cached_tokens":1,'
    '"usd":0.25},"raw":"r"}}\n'
)


@pytest.mark.parametrize(("spec", "mode", "constitution"), KEYS)
def test_a_judge_keeps_the_keys_of_its_verdicts(
    spec: str, mode: Mode, constitution: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx, "fingerprint", lambda folder: "f")
    monkeypatch.setattr(mlx, "tokenizer_fingerprint", lambda folder: "t")
    judge = make_judge(spec, JudgeRequest(constitution=constitution), mode)
    (asked,) = judge.leaves(QUESTIONS[mode])
    assert key_of(asked.identity, QUESTIONS[mode]) == KEYS[spec, mode, constitution]


def test_a_batch_has_keys_of_its_limit_alone() -> None:
    judge = make_judge(CLAUDE, JudgeRequest(batch=True, judge_tokens=100))
    assert key_of(judge.identity, QUESTIONS["pairwise"]) == BATCH


def test_a_line_of_version_0_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(LINE, encoding="utf-8")
    with Journal(path) as journal:
        verdict = journal.get(KEYS["rules", "pairwise", None])
    assert verdict == Verdict("ok", "second", None, "so", "brief", Usage(5, 2, 1, 0.25), "r")
