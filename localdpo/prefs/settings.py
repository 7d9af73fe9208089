"""The settings of the checks, from a recipe or from a model's name and a length; tokenizers without MLX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from localdpo.core.errors import UserError
from localdpo.core.names import is_demo, resolve
from localdpo.core.process import preload
from localdpo.data.encode import Limits
from localdpo.data.formats import named_format
from localdpo.data.types import Tokenizer
from localdpo.prefs.checks.base import CheckSettings
from localdpo.recipe.load import load_recipe
from localdpo.recipe.schema import DataSource, Recipe


def settings_from(
    recipe: Path | None,
    model: str | None,
    max_length: int | None,
    format_name: str | None,
    against: Sequence[str],
    reference: int | None,
    data: str | None,
) -> tuple[CheckSettings, str]:
    """The checks that the options of a command name, and the data to check: `data`, or the recipe's own.

    Raises UserError(s) for options that do not go together, for the recipe, and for the model.
    """
    if recipe is not None and (model is not None or max_length is not None):
        raise UserError("--recipe names the model and its limits: remove --model and --max-length")
    if max_length is not None and model is None:
        raise UserError("--max-length counts tokens: give --model too, or --recipe")
    if max_length is not None and max_length < 2:
        raise UserError(f"--max-length: expected 2 or more, got {max_length}")
    if reference is not None and recipe is None:
        raise UserError("--reference scores with a recipe's model and adapter: give --recipe")
    if format_name is not None:
        named_format(format_name, "pairs", "--format")
    if recipe is not None:
        loaded = load_recipe(recipe)
        source = _source(data, loaded)
        return _from_recipe(loaded, source, format_name, against, reference), source
    settings = CheckSettings(
        format_name=format_name,
        tokenizer=None if model is None else open_tokenizer(model),
        limits=None if max_length is None else Limits(max_length),
        against=tuple(against),
    )
    return settings, _source(data, None)


def _from_recipe(
    recipe: Recipe, source: str, format_name: str | None, against: Sequence[str], reference: int | None
) -> CheckSettings:
    """The checks of a recipe's own data: its limits, and the prompts of its validation and evaluation data.

    What the recipe's list says about `source` goes before the recipe's own options.
    """
    train, data = recipe.train, recipe.data
    entries = [*data.train_sources, *data.valid_sources]
    entry = next((entry for entry in entries if entry.source == source), DataSource(source=source))
    limits = Limits(
        entry.max_length or train.max_length,
        entry.max_prompt_length or train.max_prompt_length,
        entry.truncation or train.truncation,
    )
    held_out = [entry.source for entry in data.valid_sources]
    held_out += [recipe.eval.prompts] if recipe.eval.prompts is not None else []
    scoring = None
    if reference is not None:
        from localdpo.prefs.checks.reference import load_scorer

        scoring = (load_scorer(recipe, limits), reference)
    return CheckSettings(
        format_name=format_name or entry.format or data.format,
        tokenizer=open_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code),
        template=data.template,
        template_kwargs=data.chat_template_kwargs,
        limits=limits,
        against=tuple(dict.fromkeys([*held_out, *against])),
        reference=scoring,
    )


def _source(data: str | None, recipe: Recipe | None) -> str:
    """The data to check: what is named, or the recipe's. Raises UserError for neither, and for several."""
    if data is not None:
        return data
    if recipe is None:
        raise UserError("no data: name a file or data set of pairs, or give --recipe")
    names = [entry.source for entry in recipe.data.train_sources]
    if len(names) > 1:
        raise UserError(f"the recipe trains on {len(names)} data sets: name one of {', '.join(names)}")
    return names[0]


def open_tokenizer(model: str, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model given as a folder, a hub id or a `demo:` name.

    Raises UserError when transformers cannot read it.
    """
    preload()
    from transformers import AutoTokenizer

    path = resolve(model) if is_demo(model) else Path(model).expanduser()
    looks_local = is_demo(model) or model.count("/") != 1 or model.startswith((".", "/", "~"))
    if looks_local and not path.is_dir():
        raise UserError(f"model {model}: no such folder; expected a model folder, a hub id or demo:model")
    name = str(path) if path.is_dir() else model
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        # `tokenizers` raises bare Exceptions, and transformers whatever a value of the wrong type leads to.
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"model {model}: its tokenizer cannot be read: {words}") from error


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids at which answers of the tokenizer's model end: those of its generation_config.json, else of its
    config.json, as mlx-lm reads them."""
    from transformers.utils import cached_file

    found: object = None
    for name in ("config.json", "generation_config.json"):
        file = cached_file(
            tokenizer.name_or_path, name, local_files_only=True, _raise_exceptions_for_missing_entries=False
        )
        try:
            read = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        except (OSError, ValueError):
            continue
        found = (read.get("eos_token_id") if isinstance(read, dict) else None) or found
    listed = found if isinstance(found, list) else [found]
    return frozenset(number for number in listed if type(number) is int)
