"""From rendered text to token ids with a response start: what is scored and what is context.

The prompt is tokenised alone, as it will be when the model answers, and is the one prefix of both branches.
The whole text is tokenised too: where the prompt's ids are its prefix, the rest is the response. Where a
token would span the boundary, the response is tokenised apart and the row counts as merged.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from localdpo.core.errors import UserError
from localdpo.data.render import Rendered, Renderer, RowDropped
from localdpo.data.types import EncodedRow, Example, Side, TemplateChoice, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raise it with every change that gives other ids for the same text: it is part of the cache's key.
ENCODER_VERSION = 1
_PORTION_CHARACTERS = 2_000_000

NO_SCORED_TOKEN = "the prompt leaves no room for a scored token within max_length"
IDENTICAL = "both responses are the same"
IDENTICAL_WHEN_CUT = "both responses are the same after truncation"
NO_CONTEXT = "empty prompt, and the tokenizer has no token to start a text with"


@dataclass(frozen=True, slots=True)
class Limits:
    """Token limits of a row. max_prompt_length None: only max_length counts."""

    max_length: int
    max_prompt_length: int | None = None
    truncation: Truncation = "keep_start"

    def __post_init__(self) -> None:
        if self.max_length < 2 or (self.max_prompt_length is not None and self.max_prompt_length < 1):
            raise ValueError(f"max_length must be >= 2 and max_prompt_length >= 1, got {self}")


@dataclass(slots=True)
class Encoded:
    """The outcome for some rows: those kept, those dropped or with a merged boundary, by number."""

    rows: list[EncodedRow] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    truncated: int = 0
    merged_rows: list[int] = field(default_factory=list)

    @property
    def merged(self) -> int:
        """How many rows had a token across the boundary."""
        return len(self.merged_rows)


@dataclass(slots=True)
class _Ids:
    prompt: list[int]
    responses: list[list[int]]
    key: int = 0


class Encoder:
    """Rows to ids for one tokenizer, template and set of limits. Pure: it keeps nothing of the rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateChoice, limits: Limits) -> None:
        self.renderer = Renderer(tokenizer, template)
        self.limits = limits
        self.tokens = _Tokens(tokenizer)

    def encode(self, examples: Sequence[tuple[int, Example]]) -> Encoded:
        """Encode (row number, example) pairs; a thousand at a time tokenise fastest."""
        result = Encoded()
        rendered: list[tuple[int, bool | None, Rendered]] = []
        for row, example in examples:
            try:
                rendered.append((row, example.desirable, self.renderer.render(example)))
            except RowDropped as drop:
                result.dropped[drop.reason].append(row)
        texts: list[str] = []
        for _, _, text in rendered:
            texts += [text.prompt, *(text.prompt + answer for answer in text.responses)]
        ids = iter(self.tokens.encode(texts))
        for row, desirable, text in rendered:
            prompt, *wholes = (next(ids) for _ in range(1 + len(text.responses)))
            cut = self._finish(row, text, prompt, wholes, result)
            if cut is not None:
                responses = tuple(_int32(response) for response in cut.responses)
                result.rows.append(EncodedRow(row, _int32(cut.prompt), responses, desirable, cut.key))
        return result

    def _finish(
        self, row: int, text: Rendered, prompt: list[int], wholes: list[list[int]], result: Encoded
    ) -> _Ids | None:
        """The ids of a row within the limits; None for one that is dropped, which `result` counts."""
        merged = any(whole[: len(prompt)] != prompt for whole in wholes)
        responses = (
            [self.tokens.continuation(answer) for answer in text.responses]
            if merged
            else [whole[len(prompt) :] for whole in wholes]
        )
        for response, close in zip(responses, text.close, strict=True):
            if close:
                response.append(self.tokens.require_eos())
        ids = _Ids([*self._start(text, prompt), *prompt], responses)
        try:
            cut = self._fit(ids)
        except RowDropped as drop:
            result.dropped[drop.reason].append(row)
            return None
        result.truncated += cut
        if merged:
            result.merged_rows.append(row)
        return ids

    def _start(self, text: Rendered, prompt: list[int]) -> list[int]:
        """The tokenizer's own leading tokens for raw text, unless the text brings them itself."""
        leading = self.tokens.leading if text.start else []
        return [] if prompt[: len(leading)] == leading else leading

    def _fit(self, ids: _Ids) -> bool:
        """Start an empty prompt, cut to the limits, drop what cannot be trained on. True if cut."""
        if len(ids.responses) > 1 and all(r == ids.responses[0] for r in ids.responses):
            raise RowDropped(IDENTICAL)
        if not ids.prompt:
            self._make_context(ids)
        ids.key = prompt_key(_int32(ids.prompt))
        cut = self._cut(ids)
        if any(not response for response in ids.responses):
            raise RowDropped(NO_SCORED_TOKEN)
        if len(ids.responses) > 1 and all(r == ids.responses[0] for r in ids.responses):
            raise RowDropped(IDENTICAL_WHEN_CUT)
        return cut

    def _make_context(self, ids: _Ids) -> None:
        """The first token is predicted from one before it: BOS, else the first that all responses share."""
        if self.tokens.bos is not None:
            ids.prompt = [self.tokens.bos]
        elif len({tuple(response[:1]) for response in ids.responses}) == 1 and len(ids.responses[0]) > 0:
            ids.prompt = ids.responses[0][:1]
            ids.responses = [response[1:] for response in ids.responses]
        else:
            raise RowDropped(NO_CONTEXT)

    def _cut(self, ids: _Ids) -> bool:
        limits, before = self.limits, (len(ids.prompt), [len(r) for r in ids.responses])
        if limits.max_prompt_length is not None and len(ids.prompt) > limits.max_prompt_length:
            ids.prompt = self._cut_prompt(ids.prompt, limits.max_prompt_length)
        room = max(0, limits.max_length - len(ids.prompt))
        ids.responses = [response[:room] for response in ids.responses]
        return before != (len(ids.prompt), [len(r) for r in ids.responses])

    def _cut_prompt(self, prompt: list[int], length: int) -> list[int]:
        if self.limits.truncation == "keep_start":
            return prompt[:length]
        # A text without its BOS is not what the model knows, so the BOS stays when the start goes.
        if prompt[0] == self.tokens.bos and length > 1:
            return [prompt[0], *prompt[1 - length :]]
        return prompt[-length:]


def prompt_key(ids: NDArray[np.int32]) -> int:
    """A hash of a prompt's ids, 56 bits: different prompts have different ones, as good as surely."""
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=7).digest())


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Side,
    template: TemplateChoice,
    *,
    tools: list[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> NDArray[np.int32]:
    """int32[>=1] ids of a prompt to answer: text or messages, with the template's generation prompt.

    `tools` and `template_kwargs` go to the chat template, as a row's own do in training.

    Raises UserError when the template refuses it, or when it is empty and there is no BOS.
    """
    tokens = _Tokens(tokenizer)
    try:
        rendered = Renderer(tokenizer, template).render_prompt(prompt, tools, template_kwargs)
    except RowDropped as drop:
        raise UserError(f"prompt: {drop.reason}") from drop
    ids = tokens.encode([rendered.prompt])[0]
    if rendered.start and ids[: len(tokens.leading)] != tokens.leading:
        ids = [*tokens.leading, *ids]
    if not ids:
        if tokens.bos is None:
            raise UserError(f"prompt: {NO_CONTEXT}")
        ids = [tokens.bos]
    return _int32(ids)


class _Tokens:
    """A tokenizer without special tokens, truncation or padding, in batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.backend = plain_backend(tokenizer)
        self.bos: int | None = tokenizer.bos_token_id
        self.leading = self._leading()
        self._glued = self.encode(["\na", "\n", "a"])

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text as it stands."""
        if not texts:
            return []
        if self.backend is not None:
            # Half the time of calling the tokenizer, which also works out offsets and masks.
            encode = partial(self.backend.encode_batch_fast, add_special_tokens=False)
            return [encoding.ids for part in _portions(texts) for encoding in encode(part)]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(row) for row in ids]

    def continuation(self, text: str) -> list[int]:
        """Ids of `text` as the continuation of other text.

        SentencePiece models put a space before a text that stands alone; there, an anchor goes before it and
        its ids are taken away again.
        """
        anchored, anchor, alone = self._glued
        if anchored == anchor + alone:
            return self.encode([text])[0]
        ids = self.encode(["\n" + text])[0]
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self.encode([text])[0]

    def require_eos(self) -> int:
        """The end-of-sequence id, or a UserError."""
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, so no response could end; set eos_token"
            )
        return int(self.tokenizer.eos_token_id)

    def _leading(self) -> list[int]:
        """The ids that the tokenizer itself puts before a text."""
        plain = self.encode(["a"])[0]
        whole = list(self.tokenizer("a")["input_ids"])
        places = range(len(whole) - len(plain) + 1)
        start = next((i for i in places if whole[i : i + len(plain)] == plain), 0)
        return whole[:start]


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The Rust tokenizer, truncation and padding off (some files switch them on); None if there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return backend


def _portions(texts: list[str]) -> Iterator[list[str]]:
    """The texts in lists of limited length: a token takes some 100 bytes until it is an id."""
    portion: list[str] = []
    size = 0
    for text in texts:
        portion.append(text)
        size += len(text)
        if size >= _PORTION_CHARACTERS:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _int32(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)
