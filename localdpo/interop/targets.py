"""The export targets: what each writes, and how it is loaded again for the check.

To add one, write its `prepare` and its `load`, and a line in TARGETS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlx.core as mx
import mlx.nn as nn

from localdpo.core.errors import UserError, UserErrors
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
from localdpo.interop.fuse import BITS, merged
from localdpo.interop.llama_cpp import load_gguf, load_lora, prepare_gguf, prepare_lora, prepare_ollama
from localdpo.interop.origin import original_of
from localdpo.interop.peft import WEIGHTS, from_peft, to_peft
from localdpo.interop.trained import Trained
from localdpo.model import lora
from localdpo.model.load import load_base


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
    relation: str
    options: frozenset[str]
    prepare: Callable[[Trained, Settings], Artefact]
    load: Callable[[Trained, Path], nn.Module]
    run: str
    place: tuple[str, ...] = ()


DTYPES: Final = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
# Of a float32 base whose export is to have 16 bits: it rounds an eighth as much as bfloat16.
HALF: Final = "float16"


# --- whole models --------------------------------------------------------------------------------------


def _mlx(trained: Trained, settings: Settings) -> Artefact:
    model = merged(trained, settings.bits, dequantise=settings.dequantize)

    def write(folder: Path) -> list[str]:
        write_config(folder, model.config)
        write_weights(folder, model.weights, "mlx")
        return copy_tokenizer(trained.base, folder)

    return Artefact(nbytes(model.weights) + tokenizer_bytes(trained.base), write)


def _hf(trained: Trained, settings: Settings) -> Artefact:
    model = merged(trained, None, dequantise=True)
    require_same_names(model.config)
    # A base of 16 bits keeps its type: another one of 16 would round it again.
    own = str(next(iter(model.weights.values())).dtype).rpartition(".")[2]
    dtype = settings.dtype or (HALF if own == "float32" else own)
    model.weights.update({name: array.astype(DTYPES[dtype]) for name, array in model.weights.items()})
    # Named, since the two libraries have other defaults for them.
    config = {key: value for key, value in model.config.items() if key != "dtype"} | {
        "torch_dtype": dtype,
        "tie_word_embeddings": "lm_head.weight" not in model.weights,
    }

    def write(folder: Path) -> list[str]:
        write_config(folder, config)
        write_weights(folder, model.weights, "pt")
        return copy_tokenizer(trained.base, folder)

    return Artefact(nbytes(model.weights) + tokenizer_bytes(trained.base), write)


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

_BITS: Final = frozenset({"--bits", "--dequantize"})
TARGETS: Final = {
    target.name: target
    for target in (
        Target(
            name="mlx",
            what="the whole model for mlx-lm",
            library="mlx",
            relation="finetune",
            options=_BITS,
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
            relation="finetune",
            options=frozenset({"--dtype"}),
            prepare=_hf,
            load=_load_model,
            run=_HF_RUN,
        ),
        Target(
            name="lmstudio",
            what="the whole model for LM Studio on a Mac, and for mlx-lm",
            library="mlx",
            relation="finetune",
            options=_BITS,
            prepare=_mlx,
            load=_load_model,
            run=_LM_STUDIO_RUN,
            place=("localdpo",),
        ),
        Target(
            name="gguf",
            what="the whole model as a GGUF file",
            library="gguf",
            relation="finetune",
            options=_BITS,
            prepare=prepare_gguf,
            load=load_gguf,
            run=_GGUF_RUN,
        ),
        Target(
            name="gguf-lora",
            what="the adapter as a GGUF file",
            library="gguf",
            relation="adapter",
            options=frozenset(),
            prepare=prepare_lora,
            load=load_lora,
            run=_GGUF_LORA_RUN,
        ),
        Target(
            name="ollama",
            what="the whole model as a GGUF file with a Modelfile for Ollama",
            library="gguf",
            relation="finetune",
            options=_BITS,
            prepare=prepare_ollama,
            load=load_gguf,
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
    if settings.bits is not None and settings.bits not in BITS:
        problems.append(UserError(f"--bits {settings.bits}: expected one of {', '.join(map(str, BITS))}"))
    if problems:
        raise UserErrors(problems)
    return target
