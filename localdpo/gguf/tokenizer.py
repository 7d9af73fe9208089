"""The tokenizer in a GGUF file's metadata, and a tokenizer as such metadata.

Two kinds are known. `gpt2` is byte-level BPE: the list of merges is in the file, and `tokenizer.ggml.pre`
names the regular expressions that split text into words before (llama.cpp, llama-vocab.cpp); PRE has the
original ones of the models' tokenizer.json. `llama` is SentencePiece's BPE: no merges, but a score for each
token, and of all neighbours those are merged whose token has the highest score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from localdpo.core.errors import UserError
from localdpo.data.pieces import DIGITS, GPT2, GPT4O, LLAMA3, QWEN2, TEKKEN, patterns_of
from localdpo.gguf.file import GGUFFile

# llama.cpp's types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
SPACE: Final = "▁"  # SentencePiece's
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-F]{2}>")
# Tokens are some hundred characters long at most; every way to split one is looked at.
LONGEST_TOKEN: Final = 2_000


class Pre(NamedTuple):
    """What `tokenizer.ggml.pre` stands for.

    Attributes:
        patterns: text is split by each in turn, what matches and what does not.
        ignore_merges: whether a word that is a token is not built by merges.
        bos: whether a text begins with the token for it, where the file does not say.
        composed: whether Unicode is composed (NFC) first.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    bos: bool = False
    composed: bool = False


PRE: Final[Mapping[str, Pre]] = {
    "gpt-2": Pre((GPT2,)),
    "smollm": Pre((DIGITS, GPT2)),
    "llama-bpe": Pre((LLAMA3,), ignore_merges=True, bos=True),
    "smaug-bpe": Pre((LLAMA3,)),
    "qwen2": Pre((QWEN2,), composed=True),
    "tekken": Pre((TEKKEN,), ignore_merges=True, bos=True),
    "gpt-4o": Pre((GPT4O,)),
}
# Other names for them.
SAME: Final[Mapping[str, str]] = {
    **dict.fromkeys(("mpt", "olmo", "phi-2", "jina-es", "jina-de", "gigachat", "exaone4"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("dbrx",), "smaug-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "kormo"), "qwen2"),
    **dict.fromkeys(("llama4",), "gpt-4o"),
}
# Key of the id below tokenizer.ggml -> transformers' name.
SPECIAL: Final = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token",
}
# Tokens that end an answer besides eos_token_id: of a turn, of a message.
ENDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
# Tokens that end a turn where the chat template has them: files of Phi 3 and of the first Gemma do not name
# theirs. llama.cpp goes by the text, too.
TURN_ENDS: Final = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
# What llama.cpp takes where a file of SentencePiece has no such key.
_DEFAULT_IDS: Final = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def save_tokenizer(file: GGUFFile, folder: Path, *, rows: int) -> dict[str, Any]:
    """Write the tokenizer of a file into `folder`; what config.json says of its ids.

    Args:
        rows: of the embedding.

    Raises UserError: the file's tokenizer is of another kind, or does not fit together.
    """
    tokens = _tokens(file, rows)
    defaults = _DEFAULT_IDS if file.value("tokenizer.ggml.model", str) == SENTENCEPIECE else {}
    ids = {key: _id(file, key, len(tokens), defaults.get(key)) for key in {*SPECIAL, *ENDS}}
    kinds = _numbers(file, "token_type", len(tokens), np.full(len(tokens), NORMAL))
    backend = _backend(file, tokens, kinds, ids)
    template = file.value("tokenizer.chat_template", str, "")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=file.value(f"{file.value('general.architecture', str)}.context_length", int),
        chat_template=template or None,
        **{name: tokens[number] for key, name in SPECIAL.items() if (number := ids[key]) is not None},
    )
    tokenizer.save_pretrained(folder)
    turns = [tokens.index(text) for text in TURN_ENDS if text in template and text in tokens]
    ends = list(dict.fromkeys([*(number for key in ENDS if (number := ids[key]) is not None), *turns]))
    config: dict[str, Any] = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    named = {"bos_token_id": ids["bos_token_id"], "pad_token_id": ids["padding_token_id"]}
    return config | {name: number for name, number in named.items() if number is not None}


def _tokens(file: GGUFFile, rows: int) -> list[str]:
    tokens: list[str] = file.value("tokenizer.ggml.tokens", list)
    key = f"{file.path}: tokenizer.ggml.tokens"
    if not 1 <= len(tokens) <= rows:
        raise UserError(f"{key}: expected 1 to {rows:,}, the rows of the embedding, got {len(tokens):,}")
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if len(token) > LONGEST_TOKEN:
            raise UserError(f"{key}: token {number:,} has {len(token):,} characters")
        if seen.setdefault(token, number) != number:
            raise UserError(f"{key}: tokens {seen[token]:,} and {number:,} are the same")
    return tokens


def _id(file: GGUFFile, key: str, tokens: int, default: int | None) -> int | None:
    if default is None and f"tokenizer.ggml.{key}" not in file.metadata:
        return None
    number = file.value(f"tokenizer.ggml.{key}", int, default)
    if not 0 <= number < tokens:
        raise UserError(f"{file.path}: tokenizer.ggml.{key}: expected below {tokens:,}, got {number:,}")
    return number


def _numbers(file: GGUFFile, key: str, tokens: int, default: np.ndarray | None = None) -> list[Any]:
    values = file.value(f"tokenizer.ggml.{key}", np.ndarray, default)
    if len(values) != tokens:
        raise UserError(f"{file.path}: tokenizer.ggml.{key}: expected {tokens:,}, got {len(values):,}")
    if not np.isfinite(values).all():
        raise UserError(f"{file.path}: tokenizer.ggml.{key}: it holds NaN or infinity")
    return list(values.tolist())


def _backend(
    file: GGUFFile, tokens: Sequence[str], kinds: Sequence[int], ids: Mapping[str, int | None]
) -> Tokenizer:
    model = file.value("tokenizer.ggml.model", str)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        if model == BYTE_LEVEL:
            name = file.value("tokenizer.ggml.pre", str)
            if (pre := PRE.get(SAME.get(name, name))) is None:
                raise UserError(
                    f"{file.path}: tokenizer.ggml.pre: how {name} splits words is not known; "
                    f"expected one of {', '.join(sorted({*PRE, *SAME}))}"
                )
            backend, adds_bos = _byte_level(vocabulary, _listed_merges(file), pre), pre.bos
        elif model == SENTENCEPIECE:
            unknown = ids["unknown_token_id"]
            merges = _scored_merges(vocabulary, _numbers(file, "scores", len(tokens)))
            backend = _sentencepiece(file, vocabulary, merges, None if unknown is None else tokens[unknown])
            adds_bos = True
        else:
            raise UserError(
                f"{file.path}: tokenizer.ggml.model: {model} is not supported; "
                f"expected {BYTE_LEVEL} or {SENTENCEPIECE}"
            )
    except UserError:
        raise
    except Exception as error:
        # `tokenizers` raises bare Exceptions.
        raise UserError(f"{file.path}: its tokenizer cannot be built: {error}") from error
    special = {token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL}
    # llama.cpp takes white space behind Phi 3's special tokens away, but not behind these three.
    strips = file.value("general.architecture", str) == "phi3" and model == SENTENCEPIECE
    bare = special - {"<unk>", "<s>", "<|endoftext|>"} if strips else set()
    # Added in one call, which changes no id of tokens that are in the vocabulary.
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=token in special, rstrip=token in bare)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    bos, eos = ids["bos_token_id"], ids["eos_token_id"]
    adds_bos, adds_eos = (
        file.value(f"tokenizer.ggml.add_{name}_token", bool, default)
        for name, default in (("bos", adds_bos), ("eos", False))
    )
    first = [tokens[bos]] if bos is not None and adds_bos else []
    last = [tokens[eos]] if eos is not None and adds_eos else []
    if first or last:
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            special_tokens=[(token, vocabulary[token]) for token in {*first, *last}],
        )
    return backend


def _listed_merges(file: GGUFFile) -> list[tuple[str, str]]:
    merges = []
    for number, text in enumerate(file.value("tokenizer.ggml.merges", list)):
        left, _, right = text.partition(" ")
        if not left or not right:
            raise UserError(f"{file.path}: tokenizer.ggml.merges: entry {number:,} is not two tokens")
        merges.append((left, right))
    return merges


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], pre: Pre) -> Tokenizer:
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre.ignore_merges))
    if pre.composed:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _scored_merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores imply, the best first; of the same token the earliest parts."""
    merges = []
    for token, number in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                merges.append((-scores[number], number, left, right, token[:cut], token[cut:]))
    return [(left, right) for *_, left, right in sorted(merges)]


def _sentencepiece(
    file: GGUFFile, vocabulary: dict[str, int], merges: list[tuple[str, str]], unk: str | None
) -> Tokenizer:
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    spaces: normalizers.Normalizer = normalizers.Replace(" ", SPACE)
    parts: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.value("tokenizer.ggml.add_space_prefix", bool, True):
        spaces = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        parts.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = spaces
    backend.decoder = decoders.Sequence(parts)
    return backend


# --- writing -------------------------------------------------------------------------------------------


def tokenizer_metadata(folder: Path, config: Mapping[str, Any], *, rows: int) -> dict[str, Any]:
    """The keys of a GGUF file that say what the tokenizer in a folder says.

    Args:
        config: config.json, whose eos_token_id may name several.
        rows: of the embedding; numbers without a token get one that nothing is split into.

    Raises UserError: there is no tokenizer.json, or it is of a kind that llama.cpp does not have.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: no tokenizer.json that transformers can read; a GGUF file needs one")
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = form["model"], {entry["id"]: entry for entry in form["added_tokens"]}
    if model["type"] != "BPE":
        raise UserError(
            f"{folder}: a tokenizer of type {model['type']} has no place in a GGUF file; only BPE"
        )
    texts = {number: token for token, number in model["vocab"].items()}
    texts |= {number: entry["content"] for number, entry in added.items()}
    if max(texts) >= rows:
        raise UserError(f"{folder}: token {max(texts):,} has no row in the embedding of {rows:,}")
    is_spm = bool(model.get("byte_fallback"))
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    kinds = [_kind(number, texts, added, model.get("unk_token"), is_spm) for number in range(rows)]
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]
    metadata: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if is_spm:
        # A token's score ranks it as the first merge that makes it; what no merge makes (characters, bytes,
        # added tokens) comes after all others.
        ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges)))}
        letter = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0]
        metadata |= {
            "tokenizer.ggml.model": SENTENCEPIECE,
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": [-float(ranks.get(token, len(merges))) for token in tokens],
            "tokenizer.ggml.add_space_prefix": bool(letter.startswith(SPACE)),
        }
    else:
        metadata |= {
            "tokenizer.ggml.model": BYTE_LEVEL,
            "tokenizer.ggml.pre": _name_of_pre(folder, form),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        }
    around = tokenizer("").input_ids
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.bos_token_id in around[:1]
    metadata["tokenizer.ggml.add_eos_token"] = tokenizer.eos_token_id in around[-1:]
    metadata |= {
        f"tokenizer.ggml.{key}": int(number)
        for key, name in SPECIAL.items()
        if (number := getattr(tokenizer, f"{name}_id")) is not None
    }
    named = config.get("eos_token_id")
    ends = dict.fromkeys([tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])])
    written = [int(number) for number in ends if number is not None]
    metadata |= {f"tokenizer.ggml.{key}": number for key, number in zip(ENDS, written, strict=False)}
    if isinstance(tokenizer.chat_template, str):
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _kind(
    number: int, texts: Mapping[int, str], added: Mapping[int, Any], unknown: str | None, is_spm: bool
) -> int:
    """llama.cpp's type of a token."""
    text = texts.get(number)
    if text is None:
        return UNUSED
    if is_spm and text == unknown:
        return UNKNOWN
    if number in added:
        return CONTROL if added[number]["special"] else USER_DEFINED
    return BYTE if is_spm and _BYTE_TOKEN.fullmatch(text) else NORMAL


def _name_of_pre(folder: Path, form: Mapping[str, Any]) -> str:
    """What llama.cpp calls the way in which a tokenizer.json splits words."""
    patterns, ignores = tuple(patterns_of(form["pre_tokenizer"])), bool(form["model"].get("ignore_merges"))
    names = [name for name, pre in PRE.items() if pre.patterns == patterns]
    exact = [name for name in names if PRE[name].ignore_merges == ignores]
    if not names:
        raise UserError(
            f"{folder}: llama.cpp has no name for how tokenizer.json splits words "
            f"({' and '.join(patterns)}): it would give other tokens"
        )
    return (exact or names)[0]
