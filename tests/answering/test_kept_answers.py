"""Answers that earlier versions generated are found again: same keys, same lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from localdpo.answering import generator
from localdpo.answering.contestants import Contestant
from localdpo.answering.generator import plan_answers, prompt_seeds
from localdpo.data.prompts import PromptRow
from localdpo.judging.rubric import load_constitution
from localdpo.prefs.candidates import CandidateHashes, CandidateSampling, candidate_seeds, header_of
from localdpo.records.answers import AnswerRecord, AnswersWriter, Sampling
from localdpo.records.rundir import RunDir

PROMPTS = [PromptRow("What?"), PromptRow([{"role": "user", "content": "Why?"}]), PromptRow("What?")]
CANDIDATES = """\
{"v":1,"key":"55cbd4a7cb84f5d1","run":"prefs build","sampling":{"max_tokens":64,"temperature":0.7,"seed":5},\
"contestants":[{"name":"1","label":"candidate 1","role":"other","adapter":"","fingerprint":"a",\
"temperature":0.7},{"name":"2","label":"candidate 2","role":"other","adapter":"","fingerprint":"a",\
"temperature":1.0}],"prompts":[{"id":"a3cc0d53a54bf8a2","text":"What?"}],"source":"x","depends":\
{"generator":2,"group":32,"model":"m","adapter":"a","template":"t","tokenizer":"k","prompts":\
"d05f057d0dd3e3c1ea7f926be525baabcf276af842a2eeb5327054afa2853e24","constitution":null},"crc":"6397952a"}
{"prompt":0,"contestant":"1","text":"so","tokens":2,"finished":true,"ids":[],"crc":"2f52defc"}
{"prompt":0,"contestant":"2","text":"not","tokens":2,"finished":true,"ids":[],"crc":"a4ecd019"}
"""


def test_the_answers_of_a_run_keep_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "fingerprint", lambda folder: "f")
    monkeypatch.setattr(generator, "tokenizer_fingerprint", lambda folder: "t")
    run = RunDir(tmp_path / "tiny")
    run.path.mkdir()
    run.recipe.write_text("model: demo:model\ndata:\n  train: demo:pairs/train\n")
    who = [
        Contestant("base", "base", None, "none", "base"),
        Contestant("dpo", "DPO", None, "0123", "trained"),
    ]
    path, header = plan_answers(run, who, PROMPTS, Sampling(16, 1.0, 3), source="a file")
    assert path == run.path / "answers" / "fa09d87954efaccc.jsonl"
    assert header.key == "fa09d87954efaccc"
    assert prompt_seeds(PROMPTS, 3) == [191624762474908992, 10148441773221249359, 8469258224970499855]


def test_the_candidates_of_a_build_keep_their_key_and_their_seeds() -> None:
    hashes = CandidateHashes("m", "a", "t", "k")
    assert header_of("x", PROMPTS, CandidateSampling(3, (0.7, 1.0), 64, 5), hashes).key == "3e9b7c66f546e07f"
    revised = CandidateSampling(1, (1.0,), 64, 5, load_constitution("assistant"))
    assert header_of("x", PROMPTS, revised, CandidateHashes("m", None, "t", "k")).key == "5781902891b27d3f"
    seeds = [15136586944409150255, 7125365842287750829, 6070317769869867922]
    assert candidate_seeds(PROMPTS, 5, "critique") == seeds


def test_candidates_are_written_and_read_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    header = header_of(
        "x", PROMPTS[:1], CandidateSampling(2, (0.7, 1.0), 64, 5), CandidateHashes("m", "a", "t", "k")
    )
    records = [AnswerRecord(0, "1", "so", 2, True), AnswerRecord(0, "2", "not", 2, True)]
    with AnswersWriter(path, header) as writer:
        writer.answers(*records)
    assert path.read_text() == CANDIDATES
    with AnswersWriter(path, header) as writer:
        assert list(writer.tail.records.values()) == records
        assert writer.tail.missing == 0
