"""Every heuristic: the kinds that a file of checks may name, those that apply to any answer, and the demo's.

A new kind is one function here that takes the check's name and options, under `@kind("its name")`. It returns
the heuristic and raises OptionProblem for a wrong option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from localdpo.heuristics.base import CheckOptions, Heuristic, OptionProblem
from localdpo.incidents.rules import IncidentVerdict, incident_facts, judge_once

Build: TypeAlias = Callable[[str, CheckOptions], Heuristic]
HEURISTICS: Final[dict[str, Build]] = {}

LENGTH_UNITS: Final = ("words", "characters")
REPETITION_WORDS: Final = 4
# Refusals come first; further on such words are mostly about something else.
REFUSAL_WINDOW: Final = 200
REFUSALS: Final = (
    "i can't help", "i cannot help", "i can't assist", "i cannot assist", "i can't provide",
    "i cannot provide", "i can't do that", "i cannot do that", "i can't answer", "i cannot answer",
    "i can't fulfill", "i cannot fulfill", "i can't comply", "i cannot comply", "i can't discuss",
    "i cannot discuss", "i can't create", "i cannot create", "i'm unable to", "i am unable to",
    "i'm not able to", "i am not able to", "i won't be able to", "i will not be able to",
    "i must decline", "i have to decline", "i won't help", "i will not help", "as an ai",
    "it would be inappropriate", "i'm not comfortable", "i am not comfortable",
)  # fmt: skip
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "`": "'"})
_HOLE = re.compile(r"\{\{|\}\}|\{(?P<name>\w+)\}|[{}]")


def kind(name: str) -> Callable[[Build], Build]:
    """Enter a function into HEURISTICS under this name."""

    def enter(build: Build) -> Build:
        HEURISTICS[name] = build
        return build

    return enter


# --- format ----------------------------------------------------------------------------------------------


@kind("regex")
def regex(name: str, options: CheckOptions) -> Heuristic:
    """1 when the answer matches a regular expression, else 0.

    Options: `pattern`; `whole` (true: the entire answer must match, white space around it aside).
    """
    pattern = _compiled(options.text("pattern"))
    whole = options.flag("whole", True)

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        match = pattern.fullmatch(answer.strip()) if whole else pattern.search(answer)
        return float(match is not None)

    return Heuristic(name, options.better("higher"), score)


@kind("schema")
def schema(name: str, options: CheckOptions) -> Heuristic:
    """1 when the entire answer is JSON that a JSON schema accepts, else 0.

    Options: `schema` (a mapping) or `file` (a JSON file that holds it).
    """
    inline, file = options.mapping("schema"), options.optional("file")
    if (inline is None) == (file is None):
        raise OptionProblem((), "expected `schema` (the schema itself) or `file` (a JSON file with it)")
    option = "schema" if file is None else "file"
    content = inline if file is None else _json_file(file)
    # A schema of another address would be fetched while answers are scored.
    if remote := next((ref for ref in _references(content) if not ref.startswith("#")), None):
        raise OptionProblem(
            (option,), f"refers to {remote}; only references within the schema (#...) are read"
        )
    validator_class = validator_for(content)
    try:
        validator_class.check_schema(content)
    except SchemaError as error:
        raise OptionProblem((option,), f"not a JSON schema: {error.message}") from error
    validator = validator_class(content)

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        return float(validator.is_valid(value))

    return Heuristic(name, options.better("higher"), score)


@kind("template")
def template(name: str, options: CheckOptions) -> Heuristic:
    """1 when the answer fits a template with holes, where a regular expression is more than is needed.

    Options: `template`. White space around template and answer does not count.
    """
    try:
        pattern = template_pattern(options.text("template").strip())
    except ValueError as error:
        raise OptionProblem(("template",), str(error)) from error

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        return float(pattern.fullmatch(answer.strip()) is not None)

    return Heuristic(name, options.better("higher"), score)


@kind("label")
def label(name: str, options: CheckOptions) -> Heuristic:
    """1 when the answer names the label that a column of the row holds, else 0.

    Options: `column`, and `pattern`: its group 1 (else all it matches) is the label in the answer. Without a
    pattern the entire answer is the label. Case and white space around do not count. A row without the column
    is not scored; an answer that does not contain the pattern scores 0.
    """
    column, text = options.text("column"), options.optional("pattern")
    pattern = None if text is None else _compiled(text)
    if pattern is not None and pattern.groups > 1:
        raise OptionProblem(("pattern",), "expected at most one group; write (?:...) for the others")

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float | None:
        wanted = _column_value(facts, column)
        if wanted is None:
            return None
        named: str | None = answer
        if pattern is not None:
            match = pattern.search(answer)
            named = match[pattern.groups] if match else None
        return float(named is not None and named.strip().casefold() == str(wanted).strip().casefold())

    return Heuristic(name, options.better("higher"), score)


def template_pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template: `{name}` is any text on one line, at least one character.

    A hole starts with a character that is no white space; `{{` and `}}` stand for braces. Raises ValueError
    for a single brace, and for a template without holes.
    """
    parts, end, holes = [], 0, 0
    for match in _HOLE.finditer(template):
        parts.append(re.escape(template[end : match.start()]))
        end = match.end()
        if match["name"] is not None:
            parts.append(r"\S[^\n]*")
            holes += 1
        elif len(match[0]) == 2:
            parts.append(re.escape(match[0][0]))
        else:
            raise ValueError(
                f"a lone {match[0]} at character {match.start() + 1}; write {match[0] * 2} for it"
            )
    if not holes:
        raise ValueError("no hole in it, such as {summary}")
    return re.compile("".join([*parts, re.escape(template[end:])]))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptionProblem(("pattern",), f"not a regular expression: {error}") from error


def _json_file(file: str) -> Mapping[str, Any]:
    try:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionProblem(("file",), f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise OptionProblem(("file",), f"{file} holds no JSON object")
    return content


def _references(value: Any) -> Iterator[str]:
    """Every address that a JSON schema refers to."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(item, str):
                yield item
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _column_value(facts: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field inside it (`facts.region`); None where there is none."""
    value: Any = facts
    for name in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


# --- style -----------------------------------------------------------------------------------------------


@kind("length")
def length(name: str, options: CheckOptions) -> Heuristic:
    """How long an answer is. Neither way is better, but judges tend to like longer answers.

    Options: `unit`: words, which are runs of characters between white space (default), or characters (code
    points, white space around the answer aside).
    """
    in_words = options.choice("unit", LENGTH_UNITS, "words") == "words"

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        return float(len(answer.split()) if in_words else len(answer.strip()))

    return Heuristic(name, options.better("neutral"), score, digits=1)


@kind("repetition")
def repetition(name: str, options: CheckOptions) -> Heuristic:
    """The share of an answer's n-grams that occurred before: see `repeated_share`.

    Options: `n`, the words of an n-gram (4).
    """
    n = options.positive("n", REPETITION_WORDS)

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float | None:
        return repeated_share(answer, n)

    return Heuristic(name, options.better("lower"), score)


@kind("refusal")
def refusal(name: str, options: CheckOptions) -> Heuristic:
    """1 when one of some phrases occurs near the beginning of the answer, else 0.

    Its limits: the phrases are English; a refusal in other words is not seen, and an answer that quotes such
    a phrase in its first characters counts as one. It does not know whether refusing was right: for prompts
    that should be refused, set `better: higher`, and for mixed ones `better: neutral`.

    Options: `phrases`, a list to look for instead of the built-in one.
    """
    phrases = tuple(_plain(phrase) for phrase in options.texts("phrases", REFUSALS))

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        start = _plain(answer)[:REFUSAL_WINDOW]
        return float(any(phrase in start for phrase in phrases))

    return Heuristic(name, options.better("lower"), score)


def repeated_share(answer: str, n: int) -> float | None:
    """The share of an answer's n-grams that occurred before, in [0, 1):

        1 - |different n-grams| / |n-grams|

    over words, case aside, as seq-rep-n of Welleck et al. (2020), "Neural Text Generation with Unlikelihood
    Training". None for an answer of fewer than n words.
    """
    words = answer.casefold().split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def _plain(text: str) -> str:
    """Lower case, straight apostrophes, one space between words."""
    return " ".join(text.casefold().translate(_APOSTROPHES).split())


# --- without a file of checks ----------------------------------------------------------------------------


def _incident(name: str, holds: Callable[[IncidentVerdict], bool]) -> Heuristic:
    """How well an answer triages an incident; other rows are not scored."""

    def score(prompt: str, answer: str, row: Mapping[str, Any]) -> float | None:
        facts = incident_facts(row)
        return None if facts is None else float(holds(judge_once(answer, facts)))

    return Heuristic(name, "higher", score)


# For anybody's answers.
GENERAL: Final[tuple[Heuristic, ...]] = (
    Heuristic("empty", "lower", lambda prompt, answer, facts: float(not answer.strip())),
    length("words", CheckOptions({})),
    repetition("repetition", CheckOptions({})),
    refusal("refusal", CheckOptions({})),
)
# And for answers to the demo's prompts, whose rows hold an incident's facts.
STANDARD: Final[tuple[Heuristic, ...]] = (
    _incident("in the format", lambda verdict: verdict.conforms),
    _incident("severity right", lambda verdict: verdict.severity),
    _incident("facts right", lambda verdict: verdict.faithful),
    _incident("all right", lambda verdict: verdict.exact),
    *GENERAL,
)
