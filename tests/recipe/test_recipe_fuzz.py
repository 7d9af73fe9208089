"""Whatever file and overrides hold: a Recipe, or one printable line a problem, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import RECIPES

from localdpo.core.errors import UserError, UserErrors
from localdpo.recipe.describe import all_keys
from localdpo.recipe.load import dump_recipe, load_recipe

pytestmark = pytest.mark.slow

TEXTS = [path.read_bytes() for path in RECIPES]
FRAGMENTS = [
    *b"\n\t :#-[]{},&*!|>'\"%@`?\\0\xff\xc3\x00\x85",
    *[
        b"1e-5",
        b".nan",
        b"-.inf",
        b"1e999",
        b"no",
        b"~",
        b"010",
        b"0,1",
        b"9" * 40,
        b"<<: *a\n",
        b"&a ",
        b"*a",
    ],
    *[
        b"!!python/object/apply:os.system [ls]",
        b"--- ",
        b"%YAML 1.9\n",
        b'"\\UFFFFFFFF"',
        b'"\\ud800"',
        b"? ",
    ],
    *[
        b"  beta: 0.2\n",
        b"loss: ipo\n",
        b"train:\n",
        b"lora: {layers: 0}\n",
        b"[[[[[[[[[[[[",
        "\u2028\ufeff".encode(),
    ],
]
PIECES = [piece if isinstance(piece, bytes) else bytes([piece]) for piece in FRAGMENTS]
VALUES = [piece.decode("utf-8", "surrogateescape") for piece in PIECES]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A recipe of the repository after a few cuts, insertions, doublings and swaps."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 40)))
        piece = draw(
            st.sampled_from([*PIECES, text[start:stop], text[start:stop] * 2, b""]) | st.binary(max_size=8)
        )
        text = text[:start] + piece + text[stop:]
    return text


overrides = st.lists(
    st.builds("{}={}".format, st.sampled_from([*all_keys(), "loss", "train", "x"]), st.sampled_from(VALUES))
    | st.text(max_size=20),
    max_size=3,
)


@given(text=mutated(), changes=overrides)
def test_a_mutated_recipe_gives_a_recipe_or_lines(
    text: bytes, changes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(text, changes, tmp_path_factory.getbasetemp() / "fuzz.yaml")


@given(
    text=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_give_a_recipe_or_lines(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(text, [], tmp_path_factory.getbasetemp() / "fuzz.yaml")


def check(text: bytes, changes: list[str], path: Path) -> None:
    path.write_bytes(text)
    lines: tuple[str, ...] = ()
    try:
        recipe = load_recipe(path, changes)
    except (UserError, UserErrors) as error:
        lines = error.lines
    else:
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe
        return
    assert lines
    for line in lines:
        assert line.isprintable(), line
        assert len(line) < 800, line
        assert ": " in line
