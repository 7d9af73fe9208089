"""The export targets: what each writes, and how it is loaded again for the check.

To add one, write its `prepare` and its `load`, and a line in TARGETS.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import mlx.core as mx
import mlx.nn as nn

from localdpo.core.errors import UserError, UserErrors
from localdpo.gguf.convert import convert
from localdpo.gguf.export import GGUFModel, lora_adapter, read_lora, whole_model
from localdpo.gguf.file import Q4_1, Q8_0
from localdpo.gguf.modelfile import modelfile
from localdpo.interop import fuse
from localdpo.interop.folder import (
    Artefact,
    copy_tokenizer,
    nbytes,
    require_same_names,
    tokenizer_bytes,
    write_config,
    write_json,
    write_weights,
)
from localdpo.interop.peft import WEIGHTS, from_peft, to_peft
from localdpo.interop.trained import Trained, original_of
from localdpo.model import lora
from localdpo.model.arrays import named
from localdpo.model.generate import PARAGRAPH
from localdpo.model.load import load_base, load_tokenizer


@dataclass(frozen=True)
class Settings:
    """How an export is written: bits of merged layers (None: the target's default), whether all layers are
    dense, and the type of the numbers of a dense one (None: the target's default)."""

    bits: int | None = None
    dequantize: bool = False
    dtype: str | None = None


@dataclass(frozen=True)
class Target:
    """A layout of another program.

    Attributes:
        name: as --to takes it.
        what: that it writes, in a few words.
        library: the hub's name of the program that loads it.
        relation: of the artefact to the base model, in the hub's words.
        options: which of --bits, --dequantize and --dtype it takes.
        prepare: reads nothing large; raises UserError(s) for what has no place in the layout.
        load: the model of the artefact in a folder, frozen, to be scored.
        run: lines of code that run the artefact; REPO stands for its folder or repository, BASE for the base.
        place: folders between --out and the artefact, whose name is then that of the run.
    """

    name: str
    what: str
    library: str
    prepare: Callable[[Trained, Settings], Artefact]
    load: Callable[[Trained, Path], nn.Module]
    run: str
    relation: str = "finetune"
    options: frozenset[str] = frozenset({"--bits", "--dequantize"})
    place: tuple[str, ...] = ()


DTYPES: Final = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
# Of a float32 base whose export is to have 16 bits: it rounds an eighth as much as bfloat16.
HALF: Final = "float16"
MODEL, ADAPTER, MODELFILE = "model.gguf", "adapter.gguf", "Modelfile"
NOT_CHECKED: Final = "checked through MLX; not checked with llama.cpp"
# What merged layers of a quantised base become, by --bits.
_KINDS: Final = {4: Q4_1, 8: Q8_0}
# Words, numbers, spaces and letters that tokenizers split in different ways.
_SAMPLE: Final = f"{PARAGRAPH}\n\n  In 2026, 12345 naïve Über-testers' tests weren't CAMELcased; 漢字, ☃."


# --- whole models --------------------------------------------------------------------------------------


def _mlx(trained: Trained, settings: Settings) -> Artefact:
    return _folder(trained, *fuse.merged(trained, settings.bits, dequantise=settings.dequantize), "mlx")


def _hf(trained: Trained, settings: Settings) -> Artefact:
    config, weights = fuse.merged(trained, None, dequantise=True)
    require_same_names(config)
    # A base of 16 bits keeps its type: another one of 16 would round it again.
    own = str(next(iter(weights.values())).dtype).rpartition(".")[2]
    dtype = settings.dtype or (HALF if own == "float32" else own)
    weights.update({name: array.astype(DTYPES[dtype]) for name, array in weights.items()})
    # Named, since the two libraries have other defaults for them.
    config = {key: value for key, value in config.items() if key != "dtype"} | {
        "torch_dtype": dtype,
        "tie_word_embeddings": "lm_head.weight" not in weights,
    }
    return _folder(trained, config, weights, "pt")


def _folder(
    trained: Trained, config: dict[str, Any], weights: dict[str, mx.array], framework: Literal["mlx", "pt"]
) -> Artefact:
    """A whole model with the tokenizer of its base."""

    def write(folder: Path) -> list[str]:
        write_config(folder, config)
        write_weights(folder, weights, framework)
        return copy_tokenizer(trained.base, folder)

    return Artefact(nbytes(weights) + tokenizer_bytes(trained.base), write)


def _load_model(trained: Trained, folder: Path) -> nn.Module:
    # With its tokenizer, so that one which cannot be read is seen here.
    return load_base(str(folder), trust_remote_code=trained.recipe.trust_remote_code).model


# --- adapters ------------------------------------------------------------------------------------------


def _peft(trained: Trained, settings: Settings) -> Artefact:
    model, config = trained.load()
    require_same_names(config)
    base = original_of(trained.recipe, trained.base)
    peft_config, tensors = to_peft(model, trained.shape, base or trained.recipe.model)

    def write(folder: Path) -> list[str]:
        write_json(folder / lora.CONFIG_FILE, peft_config)
        mx.save_safetensors(str(folder / WEIGHTS), tensors, metadata={"format": "pt"})
        notes = copy_tokenizer(trained.base, folder)
        if base is None:
            notes.append(
                f"the folder of {trained.recipe.model} does not say which model it was made of; "
                f"base_model_name_or_path in {lora.CONFIG_FILE} should name one that transformers can load"
            )
        return notes

    return Artefact(nbytes(tensors) + tokenizer_bytes(trained.base), write)


def _load_peft(trained: Trained, folder: Path) -> nn.Module:
    recipe = trained.recipe
    model = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code).model
    shape, weights = from_peft(folder, model)
    lora.attach(model, shape, seed=0)
    lora.set_weights(model, weights, folder / WEIGHTS)
    return model


# --- llama.cpp and its kin --------------------------------------------------------------------------------

# They are checked through this package's own reader, with which MLX's reader and the `gguf` package agree in
# the tests; llama.cpp itself does not take part.


def _gguf(trained: Trained, settings: Settings, *, ollama: bool = False) -> Artefact:
    """A whole model: --bits is that of merged layers of a quantised base; for Ollama with its Modelfile."""
    whole = _whole(trained, settings)
    text, notes = modelfile(trained.base, MODEL) if ollama else ("", [])

    def write(folder: Path) -> list[str]:
        whole.write(folder / MODEL)
        if ollama:
            (folder / MODELFILE).write_text(text, encoding="utf-8")
        return [*whole.notes, *notes, NOT_CHECKED]

    return Artefact(whole.size, write)


def _whole(trained: Trained, settings: Settings) -> GGUFModel:
    bits = settings.bits
    if bits is not None and bits not in _KINDS:
        raise UserError(f"--bits {bits}: a GGUF file of localdpo has 4 or 8 bits")
    if settings.dequantize:
        dense = fuse.merged(trained, None, dequantise=True)
        return whole_model(*dense, trained.base, name=trained.run.name)
    model, config = trained.load()
    fuse.require_quantised(trained, config, bits)
    kind = _KINDS[bits or fuse.DEFAULT_BITS]
    quantise = dict.fromkeys(fuse.on_quantised(model), kind)
    fuse.fuse(model, None)
    weights = named(model.parameters())
    return whole_model(config, weights, trained.base, name=trained.run.name, quantise=quantise)


def _load_gguf(trained: Trained, folder: Path) -> nn.Module:
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


def _gguf_lora(trained: Trained, settings: Settings) -> Artefact:
    """The adapter alone."""
    model, config = trained.load()
    adapter = lora_adapter(
        config, named(model.trainable_parameters()), scale=trained.shape.scale, name=trained.run.name
    )

    def write(folder: Path) -> list[str]:
        adapter.write(folder / ADAPTER)
        return [NOT_CHECKED]

    return Artefact(adapter.size, write)


def _load_gguf_lora(trained: Trained, folder: Path) -> nn.Module:
    """The base with the adapter of a file on it."""
    recipe = trained.recipe
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    weights, scale = read_lora(folder / ADAPTER, base.config)
    lora.attach(base.model, dataclasses.replace(trained.shape, scale=scale), seed=0)
    lora.set_weights(base.model, weights, folder / ADAPTER)
    return base.model


# --- the table -----------------------------------------------------------------------------------------

_MLX_RUN = """\
```
pip install mlx-lm
mlx_lm.chat --model REPO
```
"""
_LM_STUDIO_RUN = """\
A folder in LM Studio's layout, publisher/model: put it below LM Studio's folder of models (My Models shows
which that is), or export with `--out` naming that folder, and load it there by its name. Also for mlx-lm:

```
mlx_lm.chat --model REPO
```
"""
_HF_RUN = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("REPO")
tokenizer = AutoTokenizer.from_pretrained("REPO")
```
"""
_GGUF_RUN = """\
```
llama-cli -m REPO/model.gguf
```

LM Studio and other programs on llama.cpp take the file as it is.
"""
_GGUF_LORA_RUN = """\
In this folder, on the GGUF file of the base model:

```
llama-cli -m base.gguf --lora adapter.gguf
```

In Ollama, a Modelfile with `FROM` the base and `ADAPTER ./adapter.gguf`.
"""
_OLLAMA_RUN = """\
```
cd REPO
ollama create REPO -f Modelfile
ollama run REPO
```
"""
_PEFT_RUN = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "REPO")
```
"""

TARGETS: Final = {
    target.name: target
    for target in (
        Target(
            name="mlx",
            what="the whole model for mlx-lm",
            library="mlx",
            prepare=_mlx,
            load=_load_model,
            run=_MLX_RUN,
        ),
        Target(
            name="peft",
            what="the adapter for PEFT",
            library="peft",
            relation="adapter",
            options=frozenset(),
            prepare=_peft,
            load=_load_peft,
            run=_PEFT_RUN,
        ),
        Target(
            name="hf",
            what="the whole model for transformers, dense",
            library="transformers",
            options=frozenset({"--dtype"}),
            prepare=_hf,
            load=_load_model,
            run=_HF_RUN,
        ),
        Target(
            name="lmstudio",
            what="the whole model for LM Studio on a Mac, and for mlx-lm",
            library="mlx",
            prepare=_mlx,
            load=_load_model,
            run=_LM_STUDIO_RUN,
            place=("localdpo",),
        ),
        Target(
            name="gguf",
            what="the whole model as a GGUF file",
            library="gguf",
            prepare=_gguf,
            load=_load_gguf,
            run=_GGUF_RUN,
        ),
        Target(
            name="gguf-lora",
            what="the adapter as a GGUF file",
            library="gguf",
            relation="adapter",
            options=frozenset(),
            prepare=_gguf_lora,
            load=_load_gguf_lora,
            run=_GGUF_LORA_RUN,
        ),
        Target(
            name="ollama",
            what="the whole model as a GGUF file with a Modelfile for Ollama",
            library="gguf",
            prepare=partial(_gguf, ollama=True),
            load=_load_gguf,
            run=_OLLAMA_RUN,
        ),
    )
}


def target_of(name: str, settings: Settings) -> Target:
    """The target of a name. Raises UserError(s) for an unknown one, and for options that it does not take."""
    target = TARGETS.get(name)
    if target is None:
        raise UserError(f"--to {name}: expected one of {', '.join(TARGETS)}")
    problems = []
    given = {
        "--bits": settings.bits is not None,
        "--dequantize": settings.dequantize,
        "--dtype": settings.dtype is not None,
    }
    for option, is_given in given.items():
        if is_given and option not in target.options:
            takes = ", ".join(other.name for other in TARGETS.values() if option in other.options)
            problems.append(UserError(f"{option}: --to {name} has no use for it; it is for --to {takes}"))
    if given["--bits"] and given["--dequantize"]:
        problems.append(UserError("--bits and --dequantize: give one of the two"))
    if settings.bits is not None and settings.bits not in fuse.BITS:
        problems.append(
            UserError(f"--bits {settings.bits}: expected one of {', '.join(map(str, fuse.BITS))}")
        )
    if problems:
        raise UserErrors(problems)
    return target
