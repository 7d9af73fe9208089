"""Pages: self-contained, escaped, readable on a phone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import measure
from jinja2 import UndefinedError

from localdpo.pages import compare_values, percent, render, signed, write_page
from localdpo.records.answers import AnswerRecord, AnswersTail, Header, Sampling

pytestmark = pytest.mark.slow

HOSTILE = (
    '</script><script>window.hit=1</script><img src=x onerror="parent.hit=1"> &amp; </p></article>\'"><b>',
    "a\x1b[31mred\x00 \u202ereversed {{ 7 * 7 }} {% raw %}",
    "unbroken" * 60 + " https://example.org/" + "x" * 200,
)
# Elements that HTML closes by itself.
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Outline(HTMLParser):
    """The tags of a page; fails on a tag that closes what is not open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def answers(texts: dict[str, list[str]], *, start: bool = True) -> AnswersTail:
    """Answers in memory: contestant -> one text a prompt."""
    labels = {"base": "base", "sft": "SFT", "dpo": "DPO"}
    roles = {"base": "base", "sft": "start", "dpo": "trained"}
    names = [name for name in labels if name in texts]
    tail = AnswersTail("none")
    count = len(texts["dpo"])
    tail.header = Header(
        key="0" * 16,
        run="<demo & co>",
        sampling=Sampling(64, 0.7, 3),
        contestants=tuple(
            {"name": name, "label": labels[name], "role": roles[name], "adapter": "", "fingerprint": ""}
            for name in names
        ),
        prompts=tuple({"id": f"{i:016x}", "text": f"Prompt {i}? {HOSTILE[0]}"} for i in range(count)),
        source="demo:prompts/heldout",
    )
    for name in names:
        for i, text in enumerate(texts[name]):
            logps = {model: -0.5 - place for place, model in enumerate(names)}
            tail.records[i, name] = AnswerRecord(i, name, text, len(text.split()), i % 2 == 0, logps)
    return tail


def page(texts: dict[str, list[str]]) -> str:
    return render("compare", **compare_values(answers(texts)))


THREE = {
    "base": ["sky is up", *HOSTILE],
    "sft": ["the sky is blue", *HOSTILE],
    "dpo": ["the sky is grey", *HOSTILE[::-1]],
}


def test_a_page_asks_for_nothing_outside_itself() -> None:
    outline = Outline(page({name: texts[:1] for name, texts in THREE.items()}))
    names = [tag for tag, _ in outline.tags]
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(names)
    for tag, attributes in outline.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "action", "srcset", "poster"):
                assert value is not None
                assert value.startswith(("#", "data:")), (tag, value)
    text = render("compare", **compare_values(answers({"base": ["a"], "dpo": ["b"]})))
    assert not re.search(r"https?:|url\(|@import", text)
    policy = dict(outline.tags)["meta"]
    assert policy is not None
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text


def test_a_page_begins_with_its_doctype_and_says_how_wide_a_phone_is() -> None:
    text = page(THREE)
    assert text.lstrip().startswith("<!doctype html>")
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text


def test_hostile_text_stays_text() -> None:
    outline = Outline(page(THREE))
    shown = "".join(outline.text)
    assert "script" not in [tag for tag, _ in outline.tags]
    assert not [attributes for tag, attributes in outline.tags if tag == "img"]
    assert "</script><script>window.hit=1</script>" in shown
    assert "{{ 7 * 7 }}" in shown
    assert not re.search("[\x00\x1b\u202e]", shown)


def test_words_that_differ_are_marked_by_elements_not_by_colour_alone() -> None:
    text = page({name: texts[:1] for name, texts in THREE.items()})
    assert "<del>blue</del><ins>grey</ins>" in text
    style = text[: text.index("</style>")]
    assert re.search(r"ins \{[^}]*underline", style)
    assert re.search(r"del \{[^}]*line-through", style)
    assert "sky is up</p>" in text, "the base has no marks beside SFT"


def test_without_a_start_adapter_the_marks_are_beside_the_base() -> None:
    text = page({"base": ["one two"], "dpo": ["one three"]})
    assert "<del>two</del><ins>three</ins>" in text
    assert "Beside base" in text


def test_lengths_and_log_probabilities_are_there() -> None:
    text = page({name: texts[:2] for name, texts in THREE.items()})
    assert "4 tokens" in text
    assert "cut at the limit" in text
    assert "SFT −1.50" in text  # noqa: RUF001
    assert "temperature 0.7, seed 3, at most 64 tokens" in text


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("compare", run="a")


def test_an_answers_file_without_a_header_has_no_page() -> None:
    with pytest.raises(ValueError, match="no answers"):
        compare_values(AnswersTail("none"))


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    values: dict[str, Any] = compare_values(answers({"base": ["a"], "dpo": ["b"]}))
    write_page(tmp_path / "page.html", "compare", **values)
    assert (tmp_path / "page.html").read_text().rstrip().endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_numbers_have_a_real_sign() -> None:
    assert signed(-0.5) == "−0.500"  # noqa: RUF001
    assert signed(0.25, 2) == "+0.25"
    assert percent(0.6134) == "61.3%"


def test_on_a_phone_nothing_sticks_out_sideways(tmp_path: Path) -> None:
    wide = (
        '<!doctype html><body style="margin:0"><p style="width:500px">wide</p><script>hit=1</script></body>'
    )
    widths = (390, 320)
    *pages, broken = measure([*((page(THREE), width) for width in widths), (wide, 390)], tmp_path)
    for width, found in zip(widths, pages, strict=True):
        assert found["scrollWidth"] <= found["clientWidth"] == width
        assert found["wide"] == []
        assert found["text"] > 500
        assert found["images"] == 0
        assert not found["ran"]
    # The measure finds what sticks out, and what ran.
    assert broken["scrollWidth"] == 500
    assert broken["wide"] == ["P"]
    assert broken["ran"]
