"""Targets of llama.cpp and its kin: GGUF files, and Ollama's Modelfile beside one.

They are checked through this package's own reader, with which MLX's reader and the `gguf` package agree in
the tests; llama.cpp itself does not take part.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import mlx.nn as nn

from localdpo.core.errors import UserError
from localdpo.gguf.convert import convert
from localdpo.gguf.export import GGUFModel, lora_adapter, read_lora, whole_model
from localdpo.gguf.file import Q4_1, Q8_0
from localdpo.gguf.modelfile import modelfile
from localdpo.interop import fuse
from localdpo.interop.folder import Artefact
from localdpo.interop.trained import Trained
from localdpo.model import lora
from localdpo.model.arrays import named
from localdpo.model.generate import PARAGRAPH
from localdpo.model.load import load_base, load_tokenizer

if TYPE_CHECKING:
    from localdpo.interop.targets import Settings

MODEL, ADAPTER, MODELFILE = "model.gguf", "adapter.gguf", "Modelfile"
NOT_CHECKED: Final = "checked through MLX; not checked with llama.cpp"
# What merged layers of a quantised base become, by --bits.
_KINDS: Final = {4: Q4_1, 8: Q8_0}
# Words, numbers, spaces and letters that tokenizers split in different ways.
_SAMPLE: Final = f"{PARAGRAPH}\n\n  In 2026, 12345 naïve Über-testers' tests weren't CAMELcased; 漢字, ☃."


def prepare_gguf(trained: Trained, settings: Settings) -> Artefact:
    """A whole model: --bits is that of merged layers of a quantised base."""
    whole = _whole(trained, settings)

    def write(folder: Path) -> list[str]:
        whole.write(folder / MODEL)
        return [*whole.notes, NOT_CHECKED]

    return Artefact(whole.size, write)


def prepare_ollama(trained: Trained, settings: Settings) -> Artefact:
    """A whole model, and the Modelfile that makes it one of Ollama's."""
    whole = _whole(trained, settings)
    text, notes = modelfile(trained.base, MODEL)

    def write(folder: Path) -> list[str]:
        whole.write(folder / MODEL)
        (folder / MODELFILE).write_text(text, encoding="utf-8")
        return [*whole.notes, *notes, NOT_CHECKED]

    return Artefact(whole.size, write)


def _whole(trained: Trained, settings: Settings) -> GGUFModel:
    bits = settings.bits
    if bits is not None and bits not in _KINDS:
        raise UserError(f"--bits {bits}: a GGUF file of localdpo has 4 or 8 bits")
    if settings.dequantize:
        dense = fuse.merged(trained, None, dequantise=True)
        return whole_model(dense.config, dense.weights, trained.base, name=trained.run.name)
    model, config = trained.load()
    fuse.require_quantised(trained, config, bits)
    kind = _KINDS[bits or fuse.DEFAULT_BITS]
    quantise = dict.fromkeys(fuse.on_quantised(model), kind)
    fuse.fuse(model, None)
    weights = named(model.parameters())
    return whole_model(config, weights, trained.base, name=trained.run.name, quantise=quantise)


def load_gguf(trained: Trained, folder: Path) -> nn.Module:
    """The model of a file. Raises UserError if its tokenizer gives other tokens than that of the base."""
    with tempfile.TemporaryDirectory(prefix="localdpo-") as temp:
        convert(folder / MODEL, Path(temp) / "model")
        base = load_base(str(Path(temp) / "model"))
    own = load_tokenizer(trained.recipe.model, trust_remote_code=trained.recipe.trust_remote_code)
    if base.tokenizer.encode(_SAMPLE) != own.encode(_SAMPLE):
        raise UserError(
            f"{trained.base}: its tokenizer cannot be written as GGUF: the file's gives other tokens; "
            "export --to hf, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    return base.model


def prepare_lora(trained: Trained, settings: Settings) -> Artefact:
    """The adapter alone."""
    model, config = trained.load()
    adapter = lora_adapter(
        config, named(model.trainable_parameters()), scale=trained.shape.scale, name=trained.run.name
    )

    def write(folder: Path) -> list[str]:
        adapter.write(folder / ADAPTER)
        return [NOT_CHECKED]

    return Artefact(adapter.size, write)


def load_lora(trained: Trained, folder: Path) -> nn.Module:
    """The base with the adapter of a file on it."""
    recipe = trained.recipe
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    weights, scale = read_lora(folder / ADAPTER, base.config)
    lora.attach(base.model, dataclasses.replace(trained.shape, scale=scale), seed=0)
    lora.set_weights(base.model, weights, folder / ADAPTER)
    return base.model
