"""Every heuristic: the kinds that a file of checks may name, those that apply to any answer, and the demo's.

A new kind is one function here under `@kind("its name")`. Its parameters are the options of a check of this
kind, checked by their types; `name` and `better` are those of all kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator, validate_call

from localdpo.heuristics.constraints import constraints_met
from localdpo.incidents import IncidentVerdict, incident_facts
from localdpo.incidents import judge as judge_incident

Direction = Literal["higher", "lower", "neutral"]
Score: TypeAlias = Callable[[str, str, Mapping[str, Any]], "float | None"]
"""(prompt, answer, facts) -> the number, or None where the heuristic does not apply."""


@dataclass(frozen=True, slots=True)
class Heuristic:
    """One number about an answer.

    Attributes:
        name: short, unique in a table; the name of its row.
        direction: which way is better; neutral where neither is.
        score: from prompt, answer and the other columns of the prompt's row. Raises ValueError with what is
            wrong with these columns, whatever the answer.
        digits: after the point, in a table.
    """

    name: str
    direction: Direction
    score: Score
    digits: int = 3


Build: TypeAlias = Callable[..., Heuristic]
HEURISTICS: Final[dict[str, Build]] = {}

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
    """Enter a function into HEURISTICS under this name; there it checks its arguments by their types."""

    def enter(build: Build) -> Build:
        HEURISTICS[name] = validate_call(config=ConfigDict(strict=True))(build)
        return build

    return enter


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text, got {value!r}; put it in quotes")
    return value


def _plain(text: str) -> str:
    """Lower case, straight apostrophes, one space between words."""
    return " ".join(text.casefold().translate(_APOSTROPHES).split())


def _compiled(pattern: object) -> re.Pattern[str]:
    try:
        return re.compile(_text(pattern))
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error


def _label_pattern(text: object) -> re.Pattern[str] | None:
    pattern = None if text is None else _compiled(text)
    if pattern is not None and pattern.groups > 1:
        raise ValueError("expected at most one group; write (?:...) for the others")
    return pattern


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


def _schema_validator(schema: object) -> Any:
    """What validates by a JSON schema, which is a mapping or the path of a JSON file that holds one."""
    content = schema
    if isinstance(schema, str):
        try:
            content = json.loads(Path(schema).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot read {schema}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {content!r}"[:200])
    # A schema of another address would be fetched while answers are scored.
    if remote := next((ref for ref in _references(content) if not ref.startswith("#")), None):
        raise ValueError(f"refers to {remote}; only references within the schema (#...) are read")
    validator_class = validator_for(content)
    try:
        validator_class.check_schema(content)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from error
    return validator_class(content)


Text: TypeAlias = Annotated[str, PlainValidator(_text)]
Phrase: TypeAlias = Annotated[Text, AfterValidator(_plain), Field(min_length=1)]


@kind("regex")
def regex(
    name: Text,
    pattern: Annotated[re.Pattern[str], PlainValidator(_compiled)],
    whole: bool = True,
    better: Direction = "higher",
) -> Heuristic:
    """1 when the answer matches a regular expression, else 0.

    With `whole` the entire answer must match, white space around it aside.
    """

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        match = pattern.fullmatch(answer.strip()) if whole else pattern.search(answer)
        return float(match is not None)

    return Heuristic(name, better, score)


@kind("schema")
def schema(
    name: Text,
    schema: Annotated[Any, BeforeValidator(_schema_validator)] = None,
    file: Annotated[Any, BeforeValidator(_text), AfterValidator(_schema_validator)] = None,
    better: Direction = "higher",
) -> Heuristic:
    """1 when the entire answer is JSON that a JSON schema accepts, else 0.

    `schema` is the schema, or `file` a JSON file that holds it.
    """
    if (schema is None) == (file is None):
        raise ValueError("expected `schema` (the schema itself) or `file` (a JSON file with it)")
    validator = schema or file

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        return float(validator.is_valid(value))

    return Heuristic(name, better, score)


@kind("template")
def template(
    name: Text,
    template: Annotated[re.Pattern[str], PlainValidator(lambda text: template_pattern(_text(text).strip()))],
    better: Direction = "higher",
) -> Heuristic:
    """1 when the answer fits a `template` with holes, such as `Severity: {level}`, else 0.

    A hole is some text on one line. White space around template and answer does not count.
    """

    fits = template.fullmatch
    return Heuristic(name, better, lambda prompt, answer, facts: float(fits(answer.strip()) is not None))


@kind("label")
def label(
    name: Text,
    column: Text,
    pattern: Annotated[re.Pattern[str] | None, PlainValidator(_label_pattern)] = None,
    better: Direction = "higher",
) -> Heuristic:
    """1 when the answer names the label that a column of the row holds, else 0.

    The pattern's group (else all it matches) is the label in the answer; without a pattern the entire
    answer is. Case and white space around do not count. A row without the column is not scored; an answer
    that does not contain the pattern scores 0.
    """

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float | None:
        wanted = _column_value(facts, column)
        if wanted is None:
            return None
        named: str | None = answer
        if pattern is not None:
            match = pattern.search(answer)
            named = match[pattern.groups] if match else None
        return float(named is not None and named.strip().casefold() == str(wanted).strip().casefold())

    return Heuristic(name, better, score)


@kind("constraints")
def constraints(
    name: Text, measure: Literal["all", "share"] = "all", better: Direction = "higher"
) -> Heuristic:
    """How far the answer keeps to the constraints of its row.

    `all` is 1 when it keeps to every one of them, else 0; `share` is the share that it keeps to. A row
    without constraints is not scored.
    """

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float | None:
        met = constraints_met(answer, facts)
        if met is None:
            return None
        return float(all(met)) if measure == "all" else sum(met) / len(met)

    return Heuristic(name, better, score)


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
def length(
    name: Text, unit: Literal["words", "characters"] = "words", better: Direction = "neutral"
) -> Heuristic:
    """How long an answer is. Neither way is better, but judges tend to like longer answers.

    Words are runs of characters between white space, characters code points (white space around the answer
    aside).
    """

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        return float(len(answer.split()) if unit == "words" else len(answer.strip()))

    return Heuristic(name, better, score, digits=1)


@kind("repetition")
def repetition(
    name: Text, n: Annotated[int, Field(ge=1)] = REPETITION_WORDS, better: Direction = "lower"
) -> Heuristic:
    """The share of an answer's runs of `n` words that occurred before in it."""
    return Heuristic(name, better, lambda prompt, answer, facts: repeated_share(answer, n))


@kind("refusal")
def refusal(
    name: Text,
    phrases: Annotated[list[Phrase], Field(min_length=1)] | None = None,
    better: Direction = "lower",
) -> Heuristic:
    """1 when one of some `phrases` occurs near the beginning of the answer, else 0.

    Its limits: the phrases are English unless given; a refusal in other words is not seen, and an answer that
    quotes such a phrase in its first characters counts as one. It does not know whether refusing was right:
    for prompts that should be refused, set `better: higher`, and for mixed ones `better: neutral`.
    """
    wanted = phrases or REFUSALS

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        start = _plain(answer)[:REFUSAL_WINDOW]
        return float(any(phrase in start for phrase in wanted))

    return Heuristic(name, better, score)


def repeated_share(answer: str, n: int) -> float | None:
    """The share of an answer's n-grams that occurred before, in [0, 1):

        1 - |different n-grams| / |n-grams|

    over words, case aside, as seq-rep-n of Welleck et al. (2020), "Neural Text Generation with Unlikelihood
    Training". None for an answer of fewer than n words.
    """
    words = answer.casefold().split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


# --- without a file of checks ----------------------------------------------------------------------------


def _incident(name: str, holds: Callable[[IncidentVerdict], bool]) -> Heuristic:
    """How well an answer triages an incident; other rows are not scored."""

    def score(prompt: str, answer: str, row: Mapping[str, Any]) -> float | None:
        facts = incident_facts(row)
        return None if facts is None else float(holds(judge_incident(answer, facts)))

    return Heuristic(name, "higher", score)


# For anybody's answers.
GENERAL: Final[tuple[Heuristic, ...]] = (
    Heuristic("empty", "lower", lambda prompt, answer, facts: float(not answer.strip())),
    length("words"),
    repetition("repetition"),
    refusal("refusal"),
)
# And for answers to the demo's prompts, whose rows hold an incident's facts.
STANDARD: Final[tuple[Heuristic, ...]] = (
    _incident("in the format", lambda verdict: verdict.conforms),
    _incident("severity right", lambda verdict: verdict.severity),
    _incident("facts right", lambda verdict: verdict.faithful),
    _incident("all right", lambda verdict: verdict.exact),
    *GENERAL,
)
