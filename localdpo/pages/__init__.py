"""Self-contained HTML files: a page holds all it shows and requests no address.

Pages extend `base.html.j2`, which has the blocks `title`, `style` (more CSS) and `main` and lets no script
run (its Content-Security-Policy says so to the browser as well). Every value is escaped: text of a model or
of a data set stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from localdpo.core.atomic import write_text
from localdpo.core.text import format_number, word_diff
from localdpo.records.answers import AnswerRecord, AnswersTail, Header, rows_of
from localdpo.records.wording import format_sampling

TEMPLATES: Final = Path(__file__).parent / "templates"
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render(template: str, **values: Any) -> str:
    """The page that `templates/TEMPLATE.html.j2` makes of `values`.

    A value that the template needs and that is not given raises jinja2.UndefinedError.
    """
    return _environment().get_template(f"{template}.html.j2").render(**values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a page into a file, which is then there in full or not at all. Raises UserError for no space."""
    write_text(path, render(template, **values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_controls,
    )
    environment.filters |= {"number": format_number, "signed": signed, "percent": percent}
    return environment


def _without_controls(value: Any) -> Any:
    """Text without the characters that no page may hold (NUL, escape) or that reorder its lines."""
    return _CONTROLS.sub("\ufffd", value) if type(value) is str else value


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign (a real minus sign) and so many digits after the point."""
    return f"{value:+.{digits}f}".replace("-", "−")  # noqa: RUF001


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage: 0.613 is `61.3%`."""
    return f"{100 * value:.{digits}f}%"


# --- the template `compare` ------------------------------------------------------------------------------


def compare_values(tail: AnswersTail) -> dict[str, Any]:
    """The values of the template: every prompt with its answers, words marked beside the reference's answer.

    The reference is the run's start adapter, or the base for a run that started without one; its own answer
    has no marks, nor has the base's beside a start adapter.
    Raises ValueError for a file without a header.
    """
    header = tail.header
    if header is None:
        raise ValueError(f"{tail.path}: no answers to show")
    reference = header.named("start") or header.named("base")
    trained = header.named("trained")
    return {
        "run": header.run,
        "source": header.source or "a file",
        "sampling": format_sampling(header.sampling),
        "labels": list(header.labels.values()),
        "against": None if reference is None else header.labels[reference],
        "trained": None if trained is None else header.labels[trained],
        "prompts": [
            {
                "number": number,
                "id": prompt["id"],
                "text": prompt["text"],
                "differs": _text_of(answers, reference) != _text_of(answers, trained),
                "answers": [_answer(header, answers, name, reference) for name in answers],
            }
            for number, (prompt, answers) in enumerate(
                zip(header.prompts, rows_of(tail), strict=True), start=1
            )
        ],
    }


def _text_of(answers: Mapping[str, AnswerRecord], name: str | None) -> str | None:
    return answers[name].text if name is not None and name in answers else None


def _answer(
    header: Header, answers: Mapping[str, AnswerRecord], name: str, reference: str | None
) -> dict[str, Any]:
    answer = answers[name]
    roles = {str(contestant["name"]): contestant["role"] for contestant in header.contestants}
    is_marked = reference in answers and name != reference and roles[name] != "base"
    pieces = word_diff(answers[reference].text, answer.text) if is_marked and reference else None
    return {
        "label": header.labels[name],
        "tokens": answer.tokens,
        "finished": answer.finished,
        "pieces": pieces or [("same", answer.text)],
        "logps": [(header.labels[model], value) for model, value in answer.logps.items()],
    }
