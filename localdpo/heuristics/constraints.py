"""Constraints: instructions that a program can check, which travel with a prompt.

A row of prompts says in its column `constraints` what its prompt asks for:

    {"prompt": "Describe tea in 2 sentences, without commas.",
     "constraints": [{"kind": "sentences", "n": 2}, {"kind": "no_commas"}]}

A kind is one function here under `@constraint("a wording of the instruction", ...)`, named as the kind. Its
arguments after the answer are the kind's parameters, checked by their types; the wordings are templates of
them. White space around an answer never counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, validate_call

from localdpo.core.text import json_or_none
from localdpo.recipe.strict_yaml import KeyPath, key_text, problems_of

COLUMN: Final = "constraints"
Holds: TypeAlias = Callable[..., bool]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Text: TypeAlias = Annotated[str, StringConstraints(pattern=r"^\S(.*\S)?$")]
Word: TypeAlias = Annotated[str, StringConstraints(pattern=r"^\w+$")]
Letter: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[^\W\d_]$")]

_QUOTES = "\"'\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
# A sentence ends with these, and whatever closes after them, before white space or the end.
_SENTENCE_END = re.compile(rf"[.!?]+[{_QUOTES})\]*]*(?=\s|$)")
_NUMBER_OF_LINE = re.compile(r"\s*(\d+)[.)]\s+\S")
_BULLET = re.compile(r"\s*[-*•]\s+\S")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ConstraintKind:
    """A kind of constraint.

    Attributes:
        holds: from an answer and the parameters, whether the answer keeps to it. Raises ValidationError for
            parameters of the wrong names or types.
        wordings: of the instruction, with the parameters in braces.
    """

    holds: Holds
    wordings: tuple[str, ...]


CONSTRAINTS: Final[dict[str, ConstraintKind]] = {}


def constraint(*wordings: str) -> Callable[[Holds], Holds]:
    """Enter a function into CONSTRAINTS under its name; there it checks its arguments by their types."""

    def enter(holds: Holds) -> Holds:
        checked = validate_call(config=ConfigDict(strict=True))(holds)
        CONSTRAINTS[holds.__name__] = ConstraintKind(checked, wordings)
        return holds

    return enter


def constraints_met(answer: str, facts: Mapping[str, Any]) -> list[bool] | None:
    """Whether an answer keeps to each constraint of its row, in their order; None for a row without any.

    Raises ValueError with what is wrong for a column that holds no constraints, an unknown kind and wrong
    parameters.
    """
    entries = facts.get(COLUMN)
    if entries is None:
        return None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{COLUMN}: expected a list of constraints, each with a kind")
    return [_met(answer.strip(), entry, (COLUMN, i)) for i, entry in enumerate(entries)]


def _met(answer: str, entry: Any, at: KeyPath) -> bool:
    if not isinstance(entry, dict) or entry.get("kind") not in CONSTRAINTS:
        kinds = ", ".join(CONSTRAINTS)
        raise ValueError(f"{key_text(at)}: expected an object with a kind ({kinds}), got {entry!r}"[:1000])
    # A table fills in null for what only other rows' kinds have.
    parameters = {name: value for name, value in entry.items() if name != "kind" and value is not None}
    try:
        return CONSTRAINTS[entry["kind"]].holds(answer, **parameters)
    except ValidationError as error:
        problems = (f"{key_text((*at, *path))}: {message}" for path, message in problems_of(error))
        raise ValueError("; ".join(problems)) from error


# --- how much --------------------------------------------------------------------------------------------


@constraint(
    "Use between {min} and {max} words.",
    "Your answer must have at least {min} and at most {max} words.",
    "Write {min} to {max} words.",
)
def words(answer: str, min: Count, max: Count | None = None) -> bool:
    """From `min` to `max` runs of characters between white space; without `max`, `min` or more."""
    count = len(answer.split())
    return min <= count and (max is None or count <= max)


@constraint(
    "Answer in exactly {n} sentences.",
    "Use {n} sentences, no more and no less.",
    "Write exactly {n} sentences.",
)
def sentences(answer: str, n: Count) -> bool:
    """Exactly n sentences, which end with . ! or ? before white space; the last may lack its end."""
    parts = _SENTENCE_END.split(answer)
    return sum(any(c.isalnum() for c in part) for part in parts) == n


@constraint(
    "Write exactly {n} paragraphs, with an empty line between them.",
    "Split your answer into {n} paragraphs; put a blank line between paragraphs.",
)
def paragraphs(answer: str, n: Count) -> bool:
    """Exactly n parts with empty lines between them."""
    return len([part for part in re.split(r"\n\s*\n", answer) if part.strip()]) == n


@constraint("Write exactly {n} lines.", "Put your answer on {n} lines.", "Your answer must have {n} lines.")
def lines(answer: str, n: Count) -> bool:
    """Exactly n lines with something on them."""
    return len([line for line in answer.splitlines() if line.strip()]) == n


@constraint(
    "Use no word longer than {n} letters.",
    "Every word must have at most {n} letters.",
    "Only use words of {n} letters or fewer.",
)
def longest_word(answer: str, n: Count) -> bool:
    """No run of letters longer than n, and at least one."""
    lengths = [len(word) for word in re.findall(r"[^\W\d_]+", answer)]
    return bool(lengths) and max(lengths) <= n


# --- words and letters -----------------------------------------------------------------------------------


def _count(answer: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE))


@constraint(
    'Use the word "{word}" in your answer.',
    'Your answer must contain the word "{word}".',
    'Mention "{word}".',
)
def contains(answer: str, word: Word) -> bool:
    """The word occurs, as a word of its own; case aside."""
    return _count(answer, word) > 0


@constraint(
    'Use the word "{word}" exactly {n} times.',
    'The word "{word}" must appear {n} times, no more and no less.',
)
def times(answer: str, word: Word, n: Count) -> bool:
    """The word occurs exactly n times, as a word of its own; case aside."""
    return _count(answer, word) == n


@constraint(
    'Do not use the word "{word}".',
    'Your answer must not contain the word "{word}".',
    'Avoid the word "{word}".',
)
def excludes(answer: str, word: Word) -> bool:
    """The answer says something, and the word does not occur as a word of its own; case aside."""
    return bool(answer) and _count(answer, word) == 0


@constraint('Do not use the letter "{letter}" anywhere.', 'Write your answer without the letter "{letter}".')
def without_letter(answer: str, letter: Letter) -> bool:
    """The answer says something, and the letter occurs in neither case."""
    return bool(answer) and letter.casefold() not in answer.casefold()


@constraint(
    "Write in lower case letters only.",
    "Do not use any capital letters.",
    "Your whole answer must be in lower case.",
)
def lower(answer: str) -> bool:
    """There are letters, and none is a capital."""
    return any(c.isalpha() for c in answer) and answer == answer.lower()


@constraint(
    "Write in capital letters only.",
    "YOUR WHOLE ANSWER MUST BE IN CAPITAL LETTERS.",
    "Use only upper case letters.",
)
def upper(answer: str) -> bool:
    """There are letters, and all are capitals."""
    return any(c.isalpha() for c in answer) and answer == answer.upper()


# --- marks -----------------------------------------------------------------------------------------------


@constraint("Do not use commas.", "Your answer must not contain a comma.", "Write without any commas.")
def no_commas(answer: str) -> bool:
    """The answer says something, without a comma."""
    return bool(answer) and "," not in answer


@constraint("End with a question.", "The last sentence must be a question.", "Finish with a question mark.")
def question(answer: str) -> bool:
    """The last character is a question mark, quotes and emphasis aside."""
    return answer.rstrip(f"{_QUOTES}*_ ").endswith("?")


@constraint(
    "Use at least {n} exclamation marks.",
    "There must be {n} or more exclamation marks in your answer.",
)
def exclamations(answer: str, n: Count) -> bool:
    """There are at least n exclamation marks."""
    return answer.count("!") >= n


@constraint(
    "Put your whole answer in double quotation marks.",
    "Wrap your entire answer in double quotes.",
    'Your answer must begin and end with the sign ".',
)
def quoted(answer: str) -> bool:
    """The answer begins and ends with a double quotation mark, with something between."""
    return re.fullmatch(r'["“].+["”]', answer, re.DOTALL) is not None


# --- beginning and end -----------------------------------------------------------------------------------


@constraint(
    'Start your answer with "{text}".', 'Begin with the words "{text}".', 'The first words must be "{text}".'
)
def starts_with(answer: str, text: Text) -> bool:
    """The answer begins with the text; case aside."""
    return answer.casefold().startswith(text.casefold())


@constraint(
    'End your answer with "{text}".',
    'Finish with the exact words "{text}".',
    'The last words must be "{text}".',
)
def ends_with(answer: str, text: Text) -> bool:
    """The answer ends with the text; case aside, and marks after it where the text itself ends with none."""
    ending = answer.casefold()
    return ending.endswith(text.casefold()) or ending.rstrip(f"{_QUOTES}*.! ").endswith(text.casefold())


@constraint(
    'Add a postscript at the end that starts with "P.S."',
    'After your answer, write a last line that begins with "P.S."',
)
def postscript(answer: str) -> bool:
    """The last line of several begins with P.S. and says something."""
    filled = [line.strip() for line in answer.splitlines() if line.strip()]
    return len(filled) > 1 and re.match(r"P\.\s?S\.\W*\w", filled[-1]) is not None


@constraint(
    "Give your answer a title in double angle brackets, such as <<title>>.",
    "Begin with a title written as <<title>>.",
)
def title(answer: str) -> bool:
    """Something on one line is in double angle brackets."""
    return re.search(r"<<[^<>\n]*\w[^<>\n]*>>", answer) is not None


# --- layout ----------------------------------------------------------------------------------------------


@constraint(
    'Answer with exactly {n} bullet points, each on a line that starts with "- ".',
    "Use {n} bullet points, no more and no less.",
    "Write a list of exactly {n} bullet points.",
)
def bullets(answer: str, n: Count) -> bool:
    """Exactly n lines begin with -, * or • and a space."""
    return sum(_BULLET.match(line) is not None for line in answer.splitlines()) == n


@constraint(
    "Write a numbered list with exactly {n} items (1., 2., ...).", "Answer as a numbered list of {n} items."
)
def numbered(answer: str, n: Count) -> bool:
    """The lines that begin with a number and . or ) are 1 to n, in order."""
    numbers = [match[1] for line in answer.splitlines() if (match := _NUMBER_OF_LINE.match(line))]
    return numbers == [str(i + 1) for i in range(n)]


@constraint(
    "Put at least {n} words or phrases in bold, like **this**.",
    "Use **bold** for at least {n} parts of your answer.",
)
def bold(answer: str, n: Count) -> bool:
    """At least n parts are within double asterisks."""
    return len(re.findall(r"\*\*[^*\n]*\w[^*\n]*\*\*", answer)) >= n


@constraint(
    "Include at least {n} placeholders in square brackets, such as [name].",
    "Leave {n} or more blanks to fill in, written as [name].",
)
def placeholders(answer: str, n: Count) -> bool:
    """At least n parts are within square brackets."""
    return len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", answer)) >= n


@constraint(
    'Write {n} parts, with a line "***" between them.',
    "Give {n} separate answers and put a line of three asterisks (***) between them.",
)
def parts(answer: str, n: Count) -> bool:
    """Exactly n parts that say something, with lines of three asterisks between them."""
    pieces = re.split(r"^\s*\*{3}\s*$", answer, flags=re.MULTILINE)
    return len(pieces) == n and all(any(c.isalnum() for c in piece) for piece in pieces)


@constraint(
    "Answer with a JSON object with the keys {keys}.",
    "Reply in JSON only. The object must have the keys {keys}.",
)
def json_keys(answer: str, keys: Annotated[list[Text], Field(min_length=1)]) -> bool:
    """The answer is a JSON object, in a code block or not, with all of these keys."""
    fenced = _FENCE.fullmatch(answer)
    value = json_or_none(fenced[1] if fenced else answer)
    return isinstance(value, dict) and set(keys) <= set(value)
