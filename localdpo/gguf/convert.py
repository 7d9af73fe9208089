"""From a GGUF file to a folder in mlx-lm's layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np

from localdpo.core.atomic import file_hash, published_dir
from localdpo.core.errors import UserError
from localdpo.core.names import cache_dir
from localdpo.gguf import blocks, families
from localdpo.gguf.families import Architecture, NamedTensor
from localdpo.gguf.file import BF16, F16, F32, SUFFIX, GGUFFile, Tensor, type_name
from localdpo.gguf.tokenizer import save_tokenizer
from localdpo.out import say

CONVERTER: Final = 2
"""Goes up when the same file gives another folder."""
SHARD_BYTES: Final = 4 * 2**30
REQUANTISED_BITS: Final = (4, 8)
_DTYPES: Final = {F32: mx.float32, F16: mx.float16, BF16: mx.bfloat16}
_LONGEST_TOKENIZER: Final = 128 * 2**20


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        types: number of tensors of each GGUF type.
        kept: tensors that stay quantised, bit for bit.
        dequantised: tensors of other quantised types.
        bytes: of the weights as written.
    """

    folder: Path
    family: str
    types: Mapping[str, int]
    kept: int
    dequantised: int
    bytes: int


def is_gguf(name: str) -> bool:
    """Whether the name of a model is that of a GGUF file."""
    return name.lower().endswith(SUFFIX)


def cached_folder(path: Path) -> Path:
    """The folder of a file's model in the cache; converted the first time its content is seen.

    Raises UserError(s): the file cannot be read or converted.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"model {path}: cannot be read ({error.strerror or error})") from error
    return _cached(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _cached(path: Path, size: int, changed: int) -> Path:
    """Size and time only decide whether the content is read again."""
    folder = cache_dir() / "models" / f"{file_hash(path).hex()[:32]}-{CONVERTER}"
    if not (folder / "config.json").is_file():
        say(f"{path.name}: converting once into {folder}", error=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(path, folder, replace=True)
    return folder


def convert(path: Path, folder: Path, *, bits: int | None = None, replace: bool = False) -> Imported:
    """Write the model of a GGUF file as an mlx-lm folder, whole or not at all.

    F32, F16 and BF16 keep their numbers; Q4_0, Q4_1 and Q8_0 stay quantised with the numbers they have; other
    types are dequantised to float16.

    Args:
        bits: quantise what is not quantised then to 4 or 8 bits, in groups of 32.
        replace: whether a folder that is there by then gives way.

    Raises UserError(s): the file is damaged, or holds what is not supported; the disk is full; the folder is
    there and is not to be replaced.
    """
    file = GGUFFile(path)
    family = families.family_of(file)
    config = families.config_of(file, family)
    located = families.located(file, family, config)
    writer = _Writer(file, family, config, located, bits)
    with published_dir(folder, writer.estimate, replace=replace) as temp:
        config |= save_tokenizer(file, temp, rows=config["vocab_size"])
        writer.write(temp)
        config |= writer.quantization()
        (temp / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    types = dict(Counter(type_name(tensor.kind) for _, tensor in located))
    return Imported(folder, family.name, types, writer.kept, writer.dequantised, writer.written)


class _Writer:
    """Writes the weights of a model, some shards of safetensors, and notes which of them are quantised."""

    def __init__(
        self,
        file: GGUFFile,
        family: Architecture,
        config: Mapping[str, Any],
        located: list[tuple[NamedTensor, Tensor]],
        bits: int | None,
    ) -> None:
        self._file, self._family, self._config = file, family, config
        self._located, self._bits = located, bits
        self._dtype = _main_dtype([tensor for _, tensor in located])
        self._quantised: dict[str, dict[str, int]] = {}
        self.kept = self.dequantised = self.written = 0

    @property
    def estimate(self) -> int:
        """Bytes that the folder needs at most."""
        return _LONGEST_TOKENIZER + sum(map(self._most_bytes, (tensor for _, tensor in self._located)))

    def _most_bytes(self, tensor: Tensor) -> int:
        # A Q4_0 block of 18 bytes becomes 20.
        return max(tensor.size * 10 // 9, 4 * prod(tensor.shape) if tensor.kind not in blocks.BITS else 0)

    def quantization(self) -> dict[str, Any]:
        """`quantization` of config.json: the bits of most layers, and of those that have others."""
        if not self._quantised:
            return {}
        most = Counter(entry["bits"] for entry in self._quantised.values()).most_common(1)[0][0]
        others = {name: entry for name, entry in self._quantised.items() if entry["bits"] != most}
        return {"quantization": {"group_size": blocks.GROUP, "bits": most, "mode": "affine", **others}}

    def write(self, folder: Path) -> None:
        """Write model.safetensors, or shards of at most SHARD_BYTES with their index."""
        shards = self._shards()
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            numbered = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            name = "model.safetensors" if len(shards) == 1 else numbered
            arrays = {key: array for entry in shard for key, array in self._arrays(*entry)}
            mx.save_safetensors(str(folder / name), arrays, metadata={"format": "mlx"})
            weight_map |= dict.fromkeys(arrays, name)
            self.written += sum(array.nbytes for array in arrays.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": self.written}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    def _shards(self) -> list[list[tuple[NamedTensor, Tensor]]]:
        shards: list[list[tuple[NamedTensor, Tensor]]] = [[]]
        size = 0
        for item, tensor in self._located:
            needed = self._most_bytes(tensor)
            if shards[-1] and size + needed > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append((item, tensor))
            size += needed
        return shards

    def _arrays(self, item: NamedTensor, tensor: Tensor) -> Iterator[tuple[str, mx.array]]:
        """The arrays of a tensor by their names in mlx-lm, evaluated."""
        order = families.row_order(self._family, self._config, item.layer, write=False)
        raw = self._file.bytes_of(tensor)
        if tensor.kind in blocks.BITS and len(tensor.shape) == 2:
            packed = blocks.unpack(raw, tensor.kind, tensor.shape[0])
            if not (np.isfinite(packed.scales).all() and np.isfinite(packed.biases).all()):
                raise self._not_finite(tensor)
            self.kept += 1
            if order is not None:
                packed = blocks.Packed(*(part[order] for part in packed))
            yield from self._quantised_layer(item, map(mx.array, packed), blocks.BITS[tensor.kind])
            return
        try:
            array = blocks.dense(raw, tensor.kind, tensor.shape)
        except ValueError as error:
            raise UserError(f"{self._file.path}: tensor {tensor.name}: {error}") from error
        if order is not None:
            array = array[mx.array(order)]
        if item.layer.endswith("norm") and self._family.norm_offset:
            array = array.astype(mx.float32) - self._family.norm_offset
        if tensor.kind not in _DTYPES:
            self.dequantised += 1
            array = array.astype(mx.float16)
        else:
            # Unless the cast changes a number.
            cast = array.astype(self._dtype)
            is_exact = mx.array_equal(cast.astype(mx.float32), array.astype(mx.float32)).item()
            array = cast if is_exact else array
        # Where a number is too large for float16, too.
        if not mx.isfinite(array).all().item():
            raise self._not_finite(tensor)
        if self._bits is not None and array.ndim == 2 and array.shape[1] % blocks.GROUP == 0:
            quantised = mx.quantize(array, group_size=blocks.GROUP, bits=self._bits)
            yield from self._quantised_layer(item, quantised, self._bits)
            return
        mx.eval(array)
        yield item.mlx, array

    def _quantised_layer(self, item: NamedTensor, arrays: Any, bits: int) -> Iterator[tuple[str, mx.array]]:
        layer = item.mlx.removesuffix(".weight")
        self._quantised[layer] = {"group_size": blocks.GROUP, "bits": bits}
        for name, array in zip(("weight", "scales", "biases"), arrays, strict=True):
            mx.eval(array)
            yield f"{layer}.{name}", array

    def _not_finite(self, tensor: Tensor) -> UserError:
        return UserError(f"{self._file.path}: tensor {tensor.name}: it holds NaN or infinity")


def _main_dtype(tensors: list[Tensor]) -> mx.Dtype:
    """The type that the model computes in: float16, that of GGUF's scales, if anything is quantised; else
    that of most numbers. Files keep norms in float32 where the model they were made of has 16 bits: numbers
    take this type if none of them changes.
    """
    if any(tensor.kind not in _DTYPES for tensor in tensors):
        return mx.float16
    numbers: Counter[int] = Counter()
    for tensor in tensors:
        numbers[tensor.kind] += prod(tensor.shape)
    return _DTYPES[numbers.most_common(1)[0][0]]
