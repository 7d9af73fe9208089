from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from localdpo.core.errors import UserError, UserErrors
from localdpo.judging.anthropic_batch import AnthropicBatchJudge
from localdpo.judging.base import Question
from localdpo.judging.cost import SHIPPED, TokenCounts, load_prices
from localdpo.judging.openai import OpenAIJudge
from localdpo.judging.panel import ConstitutionJudge, Jury
from localdpo.judging.registry import JudgeRequest, cost_lines, make_judge
from localdpo.judging.remote import RemoteJudge


def test_judges_are_made_from_their_names():
    one = make_judge("anthropic:claude-haiku-4-5", JudgeRequest(concurrency=16))
    assert (one.name, one.concurrency) == ("anthropic claude-haiku-4-5", 16)
    assert isinstance(make_judge("anthropic:m", JudgeRequest(batch=True)), AnthropicBatchJudge)
    two = make_judge("openai:http://localhost:1234/v1#org/model:4bit")
    assert isinstance(two, OpenAIJudge)
    assert (two.model, two.url) == ("org/model:4bit", "http://localhost:1234/v1/chat/completions")
    both = make_judge("jury:anthropic:m+openai:http://localhost:1/v1#x")
    assert isinstance(both, Jury)
    assert both.name == "jury of anthropic m + openai x"
    assert make_judge("rules").name == "rules"


def test_identities_tell_all_that_matters_apart():
    made = [
        make_judge("anthropic:m"),
        make_judge("anthropic:n"),
        make_judge("anthropic:m", JudgeRequest(rubrics=("triage",))),
        make_judge("anthropic:m", mode="score"),
        make_judge("openai:http://localhost:1/v1#m"),
        make_judge("openai:http://localhost:2/v1#m"),
    ]
    assert len({tuple(sorted(judge.identity.items())) for judge in made}) == len(made)
    # How many are asked at a time, or in batches, does not change a verdict.
    same = make_judge("anthropic:m", JudgeRequest(batch=True, concurrency=3))
    assert same.identity == made[0].identity


def test_a_constitution_takes_the_place_of_the_rubric():
    judge = make_judge("anthropic:m", JudgeRequest(constitution="assistant", principles="all"))
    assert isinstance(judge, ConstitutionJudge)
    assert len({tuple(sorted(member.identity.items())) for member in judge.members}) == 6
    assert judge.name == "anthropic m under assistant (all)"


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("claude", {}, "no such judge; expected one of rules, constraints, mlx:MODEL"),
        ("openai:gpt", {}, "expected openai:URL#MODEL"),
        ("mlx", {}, "expected mlx:MODEL"),
        ("rules:x", {}, "expected rules alone"),
        ("rules", {"rubrics": ("helpful",)}, "reads no rubric"),
        ("human", {}, "vote"),
        ("jury:anthropic", {}, "two judges or more"),
        ("jury:a+b", {}, "a: no such judge"),
        ("jury:rules+jury:a+b", {}, "cannot sit in a jury"),
        ("rules", {"batch": True}, "only anthropic"),
        ("openai:http://h/v1#m", {"effort": "low"}, "leave --effort out"),
        ("mlx:m", {"price": "1,2"}, "costs nothing"),
        ("anthropic:m", {"price": "1"}, "--price 1: expected dollars"),
        ("anthropic:m", {"price": "1,-2"}, "--price 1,-2: expected dollars"),
        ("jury:anthropic:m+openai:http://h/v1#m", {"price": "1,2"}, "--price is of one judge"),
        ("anthropic:m", {"rubrics": ("helpful", "triage")}, "one for mode pairwise already"),
        ("anthropic:m", {"rubrics": ("helpful",), "constitution": "assistant"}, "not both"),
        ("anthropic:m", {"prices": Path("/none.yaml")}, "/none.yaml: cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(spec: str, options: dict[str, object], said: str):
    with pytest.raises(UserError) as error:
        make_judge(spec, JudgeRequest(**options))  # type: ignore[arg-type]
    assert said in str(error.value)


def test_members_of_a_jury_get_what_they_read():
    request = JudgeRequest(rubrics=("triage",), batch=True, effort="low", price="1,2")
    jury = make_judge("jury:rules+anthropic:m", request)
    assert isinstance(jury, Jury)
    assert jury.members[1].identity["effort"] == "low"
    assert isinstance(jury.members[1], AnthropicBatchJudge)
    assert jury.members[1].rubric.name == "triage"


def test_naming_judges_loads_nothing_heavy():
    code = (
        "import sys\nfrom localdpo.judging import base, registry\n"
        "registry.make_judge('openai:http://localhost:1/v1#m')\n"
        "from localdpo.judging import anthropic, anthropic_batch\n"
        "heavy = ('anthropic', 'httpx2', 'mlx', 'transformers', 'numpy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # mlx comes with the package itself, which names its losses at the top.
    assert done.stdout.strip() in ("[]", "['mlx']"), done.stdout + done.stderr


# --- prices ------------------------------------------------------------------------------------------------


def test_prices_by_kind_of_token_and_length():
    table = load_prices()
    opus, haiku = table.of("claude-opus-5-5"), table.of("claude-haiku-5-5")
    assert opus is not None
    assert haiku is not None
    assert opus.usd(TokenCounts(1_000_000, 1_000_000, 1_000_000, 1_000_000)) == pytest.approx(
        4 + 20 + 5 + 0.2
    )
    assert opus.usd(TokenCounts(1000, 100), batch=True) == opus.usd(TokenCounts(1000, 100)) / 2
    assert haiku.usd(TokenCounts(100_000, 0)) == pytest.approx(0.01)
    assert haiku.usd(TokenCounts(60_000, 0, 40_001)) == pytest.approx((60_000 * 0.5 + 40_001 * 0.625) / 1e6)
    assert table.of("claude-haiku-4-5-20251001") == table.of("claude-haiku-4-5")
    assert table.of("claude-unheard-of") is None
    for price in table.models.values():
        for tokens in (
            TokenCounts(10, 5),
            TokenCounts(90_000, 5, 9_000, 2_000),
            TokenCounts(0, 1, 0, 500_000),
        ):
            assert price.usd(tokens) <= price.worst(tokens.all_input, tokens.output)


def test_a_price_on_the_command_line_overrules_the_table_and_makes_a_local_server_cost():
    for spec in ("anthropic:claude-opus-5-5", "openai:http://127.0.0.1:9/v1#m"):
        judge = make_judge(spec, JudgeRequest(price="1,2"))
        assert isinstance(judge, RemoteJudge)
        assert judge.usd(TokenCounts(1_000_000, 1_000_000, 1_000_000, 1_000_000)) == 1 + 2 + 1.25 + 1


def test_every_model_that_the_package_knows_has_a_price_or_is_named():
    from anthropic.types.model import Model

    known = {name for part in get_args(Model) for name in get_args(part)}
    table = load_prices()
    without = {name for name in known if table.of(name) is None}
    assert without <= {"claude-mythos-5-2", "claude-mythos-preview"}
    shipped = SHIPPED.read_text(encoding="utf-8")
    assert all(name in shipped for name in without)


def test_a_file_of_ones_own_overrules_entry_by_entry(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        "date: 2030-01-01\nmodels:\n  mine: {input: 1, output: 2, cache_write: 0, cache_read: 0}\n"
    )
    table = load_prices(path)
    mine = table.of("mine")
    assert mine is not None
    assert mine.date == "2030-01-01"
    assert table.of("claude-opus-5-5") == load_prices().of("claude-opus-5-5")


def test_the_preview_of_costs_tells_the_day_of_each_price(tmp_path: Path):
    def line(spec: str, **options: Any) -> str:
        request = JudgeRequest(**options)
        asked = [(make_judge(spec, request), [Question("1", "p", ("a", "b"))])]
        return cost_lines(request, spec, asked, tmp_path / "none.jsonl", known=True)[1]

    assert line("anthropic:claude-opus-5-5").endswith(f", by prices of {load_prices().date}")
    both = line("jury:anthropic:claude-fable-5-2+anthropic:claude-opus-5-5+rules")
    assert both.endswith(f", by prices of 2026-11-10 and {load_prices().date}")
    assert "--price IN,OUT" in line("anthropic:claude-unheard-of")
    assert "prices of" not in line("anthropic:claude-unheard-of", price="1,2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {}", ":1 date: missing"),
        ("date: soon\nmodels: {}", ":1 date: expected a day such as 2026-11-26, got 'soon'"),
        ("date: 2030-01-01\nmodel: {}\nmodels: {}", ":2 model: "),
        ("date: x\nmodels:\n  m: {input: 1}", ":3 models.m.output: missing"),
        ("date: x\nmodels:\n  m: {input: -1, output: 1, cache_write: 1, cache_read: 1}", ":3 "),
        ("date: x\nmodels:\n  m: {input: 1, output: 1, cache_write: 1, cache_read: 1, above: 3}", ":3 "),
        ("date: x\nmodels:\n  m: {input: 1e999, output: 1, cache_write: 1, cache_read: 1}", ":3 "),
    ],
)
def test_what_is_wrong_with_a_file_of_prices_is_said(tmp_path: Path, text: str, said: str):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises((UserError, UserErrors)) as error:
        load_prices(path)
    assert said in str(error.value)
