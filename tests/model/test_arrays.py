from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from localdpo.core.errors import UserError
from localdpo.model.arrays import float_types, load_arrays, named, random_key, set_random_key
from localdpo.model.load import load_base


def test_trees_by_name() -> None:
    found = named({"a": [{"b": mx.ones((1,))}, {}], "c": mx.zeros((2,))})
    assert {name: value.shape for name, value in found.items()} == {"a.0.b": (1,), "c": (2,)}


def test_arrays_are_read_whole_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    mx.save_safetensors(str(file), {"x": mx.arange(1000)})
    np.testing.assert_array_equal(np.array(load_arrays(file)["x"]), np.arange(1000))
    content = file.read_bytes()
    for size in (0, 4, 40, len(content) - 8, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"x\.safetensors: cannot be read: "):
            load_arrays(file)
    with pytest.raises(UserError, match="cannot be read"):
        load_arrays(tmp_path / "none.safetensors")


def test_float_types(tiny_model: Path) -> None:
    model = load_base(str(tiny_model)).model
    assert float_types(model) == {mx.float32}
    model.model.norm.weight = model.model.norm.weight.astype(mx.bfloat16)
    assert float_types(model) == {mx.float32, mx.bfloat16}


@pytest.mark.parametrize("key", [(0, 0), (0, 7), (2**32 - 1, 2**32 - 1), (2**31, 1)])
def test_the_random_key_goes_on_where_it_was(key: tuple[int, int]) -> None:
    set_random_key(key)
    assert random_key() == key
    first = mx.random.normal((4,))
    middle = random_key()
    second = mx.random.normal((4,))
    mx.eval(first, second)
    set_random_key(middle)
    np.testing.assert_array_equal(np.array(mx.random.normal((4,))), np.array(second))
    assert middle != key
