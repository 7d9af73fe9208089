"""Templates to HTML. Every value is escaped: text of a model or of a data set stays text.

Pages extend `base.html.j2`, which has the blocks `title`, `style` (more CSS) and `main`, asks for nothing
outside the file and lets no script run (its Content-Security-Policy says so to the browser as well).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from localdpo.core.atomic import write_text
from localdpo.core.text import format_number

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
