"""From rendered text to token ids with a response start: what is scored and what is context.

The prompt is tokenised alone, as it will be when the model answers, and is the one prefix of both branches.
Each response is tokenised as it follows the prompt: where the prompt's ids are a prefix of the whole
text's, the rest is the response. Where a token would span the boundary, the response is tokenised apart and
the row counts as merged. Tokenizers take a text apart at control tokens first, so of the prompt only what
follows its last one is tokenised again with each response.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localdpo.core.errors import UserError
from localdpo.data.chat_template import REASONING, TEXT
from localdpo.data.fields import SURROGATE, RowSkip
from localdpo.data.messages import prompt_messages
from localdpo.data.pieces import Pieces, can_be_cut
from localdpo.data.render import Rendered, Renderer
from localdpo.data.types import EncodedRow, Example, Side, TemplateChoice, Tokenizer, Truncation

# Raise it with every change that makes other ids for the same row: it is part of the caches' keys. Where only
# rows of a new kind change, their stores are told apart in store.py, and all other caches stay.
ENCODER_VERSION = 3
_PORTION_CHARACTERS = 2_000_000

NO_SCORED_TOKEN = "the prompt leaves no room for a scored token within max_length"
IDENTICAL = "both responses are the same"
IDENTICAL_WHEN_CUT = "both responses are the same after truncation"
NO_CONTEXT = "empty prompt, and the tokenizer has no token to start a text with"
NO_CONTENT = "what the chat template writes around the prompt is longer than max_prompt_length"

_SYSTEM = frozenset(("system", "developer"))
# Control tokens are looked for in this many characters at a prompt's end; so many ends are remembered.
_TAIL_CHARACTERS, _TAILS = 256, 1000
# Of a longer text only what the limits may leave is tokenised: so many characters, and so many a token.
_LONG, _LONG_TOKEN = 100_000, 16
# Before a space, a new line, or punctuation of languages that are written without spaces.
_WORD_END = re.compile(r"(?<=[^\W_])(?=[ \n\u3001\u3002\uff01\uff0c\uff1f])")


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
    """The outcome for some rows: those kept, those dropped or with a merged boundary, by number.

    `notes`: what a person should know of kept rows. The template left out `lost` of the `whole` characters of
    the answers in the rows that `reasoning_lost` names. `limits`: as of a Renderer, for these rows.
    """

    rows: list[EncodedRow] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    truncated: int = 0
    merged_rows: list[int] = field(default_factory=list)
    notes: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    reasoning_lost: list[int] = field(default_factory=list)
    lost: int = 0
    whole: int = 0
    limits: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Ids:
    prompt: list[int]
    responses: list[list[int]]
    key: int = 0
    merged: bool = False


class Encoder:
    """Rows to ids for one tokenizer, template and set of limits. Pure: it keeps nothing of the rows."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: TemplateChoice,
        limits: Limits,
        *,
        end_ids: Collection[int] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """`end_ids`, `template_kwargs`: see Renderer."""
        self.renderer = Renderer(tokenizer, template, end_ids=end_ids, template_kwargs=template_kwargs)
        self.limits = limits
        self.tokens = _Tokens(tokenizer)

    def encode(self, examples: Sequence[tuple[int, Example]]) -> Encoded:
        """Encode (row number, example) pairs; a thousand at a time tokenise fastest."""
        result, before = Encoded(), len(self.renderer.limits)
        rendered: list[tuple[int, Example, Rendered]] = []
        for row, example in examples:
            try:
                rendered.append((row, example, self.renderer.render(example)))
            except RowSkip as drop:
                result.dropped[drop.reason].append(row)
        every = self._ids([self._shortened(example, text) for _, example, text in rendered])
        for (row, example, text), ids in zip(rendered, every, strict=True):
            try:
                cut = self._fit(ids, example, text)
            except RowSkip as drop:
                result.dropped[drop.reason].append(row)
                continue
            result.truncated += cut
            if ids.merged:
                result.merged_rows.append(row)
            for part in text.left_out.parts - {REASONING}:
                result.notes[f"the chat template leaves out {part}"].append(row)
            if REASONING in text.left_out.parts:
                result.reasoning_lost.append(row)
                result.lost += text.left_out.lost
                result.whole += text.left_out.whole
            if words := self.renderer.note(example, text):
                result.notes[words].append(row)
            responses = tuple(_int32(response) for response in ids.responses)
            result.rows.append(EncodedRow(row, _int32(ids.prompt), responses, example.desirable, ids.key))
        result.limits = self.renderer.limits[before:]
        return result

    def _ids(self, rendered: Sequence[Rendered]) -> list[_Ids]:
        """The ids of rows, uncut, each response that ended with its end."""
        prompts = self.tokens.encode([text.prompt for text in rendered])
        tails = [self._tail(text, ids) for text, ids in zip(rendered, prompts, strict=True)]
        texts = [
            tail.text + answer
            for text, tail in zip(rendered, tails, strict=True)
            for answer in text.responses
        ]
        wholes = iter(self.tokens.encode(texts))
        every = []
        for text, prompt, tail in zip(rendered, prompts, tails, strict=True):
            ids = self._joined(text, prompt, tail, [next(wholes) for _ in text.responses])
            for response, close in zip(ids.responses, text.close, strict=True):
                if close:
                    response.append(self.tokens.require_eos())
            ids.prompt = self.tokens.started(text, ids.prompt)
            every.append(ids)
        return every

    def _tail(self, text: Rendered, prompt: list[int]) -> _Tail:
        """The end of a prompt from its last control token on; all of it where that is not certain."""
        start = max(0, len(text.prompt) - _TAIL_CHARACTERS)
        control = [*self.renderer.control_tokens.finditer(text.prompt, start)]
        if control and self.tokens.backend is not None:
            tail = text.prompt[control[-1].start() :]
            ids = self.tokens.of_tail(tail)
            if (
                ids[:1] == [self.tokens.added[control[-1].group()]]
                and prompt[len(prompt) - len(ids) :] == ids
            ):
                return _Tail(tail, ids)
        return _Tail(text.prompt, prompt)

    def _joined(self, text: Rendered, prompt: list[int], tail: _Tail, wholes: list[list[int]]) -> _Ids:
        """Prompt and responses of a row; `wholes` are the tail's ids with each response's."""
        if all(whole[: len(tail.ids)] == tail.ids for whole in wholes):
            return _Ids(prompt, [whole[len(tail.ids) :] for whole in wholes])
        before = prompt[: len(prompt) - len(tail.ids)]
        if text.least is not None:
            # The opening may be any that the branches share: as many whole tokens as they do.
            shared = 0
            for ids in zip(tail.ids, *wholes, strict=False):
                if len(set(ids)) > 1:
                    break
                shared += 1
            least = len(self.tokens.encode([text.prompt[: text.least]])[0])
            if len(before) + shared >= max(1, least):
                return _Ids([*before, *wholes[0][:shared]], [whole[shared:] for whole in wholes])
        return _Ids(prompt, [self.tokens.continuation(answer) for answer in text.responses], merged=True)

    def _fit(self, ids: _Ids, example: Example, text: Rendered) -> bool:
        """Start an empty prompt, cut to the limits, drop what cannot be trained on. True if cut."""
        alike = len(ids.responses) > 1 and all(r == ids.responses[0] for r in ids.responses)
        if alike and (len(set(text.responses)) == 1 or max(map(len, text.responses)) <= _LONG):
            lost = sorted(text.left_out.parts & {REASONING, TEXT})
            raise RowSkip(f"{IDENTICAL} once the chat template left out {lost[0]}" if lost else IDENTICAL)
        if not ids.prompt:
            self._make_context(ids)
        # Of a long text not all ids are known.
        is_long = len(text.prompt) > _LONG
        ids.key = prompt_key(text.prompt.encode() if is_long else _int32(ids.prompt))
        cut = self._cut(ids, example, text)
        if any(not response for response in ids.responses):
            raise RowSkip(NO_SCORED_TOKEN)
        if len(ids.responses) > 1 and all(r == ids.responses[0] for r in ids.responses):
            raise RowSkip(IDENTICAL_WHEN_CUT)
        return cut

    def _make_context(self, ids: _Ids) -> None:
        """The first token is predicted from one before it: BOS, else the first that all responses share."""
        if self.tokens.bos is not None:
            ids.prompt = [self.tokens.bos]
        elif len({tuple(response[:1]) for response in ids.responses}) == 1 and len(ids.responses[0]) > 0:
            ids.prompt = ids.responses[0][:1]
            ids.responses = [response[1:] for response in ids.responses]
        else:
            raise RowSkip(NO_CONTEXT)

    def _cut(self, ids: _Ids, example: Example, text: Rendered) -> bool:
        limits, before = self.limits, (len(ids.prompt), [len(r) for r in ids.responses])
        most = limits.max_prompt_length
        if most is not None and len(ids.prompt) > most:
            ids.prompt = self._cut_text(ids.prompt, most) if text.start else self._cut_chat(example, most)
        room = max(0, limits.max_length - len(ids.prompt))
        ids.responses = [response[:room] for response in ids.responses]
        return before != (len(ids.prompt), [len(r) for r in ids.responses])

    def _cut_text(self, prompt: list[int], length: int) -> list[int]:
        if self.limits.truncation == "keep_start":
            return prompt[:length]
        # A text without its BOS is not what the model knows, so the BOS stays when the start goes.
        if prompt[0] == self.tokens.bos and length > 1:
            return [prompt[0], *prompt[1 - length :]]
        return prompt[-length:]

    def _cut_chat(self, example: Example, length: int) -> list[int]:
        """The ids of a chat's prompt, cut to `length`: whole turns before the last user's go first, the
        oldest for keep_end and the newest for keep_start, then tokens of the contents, at that end. System
        text is the last to be cut. What the template writes around them stays.

        Raises RowSkip where that alone is too long.
        """
        messages = prompt_messages(example.prompt)
        spoken = [i for i, message in enumerate(messages) if message.get("role") not in _SYSTEM]
        system = spoken[0] if spoken else len(messages)
        # Where turns begin, after the system messages that come first.
        begins = [i for i in range(system, len(messages)) if i == system or messages[i].get("role") == "user"]
        begins = begins or [system]

        def without(count: int, *, keep_end: bool) -> Example:
            start, stop = (system, begins[count]) if keep_end else (begins[-1 - count], begins[-1])
            return replace(example, prompt=[*messages[:start], *messages[stop:]])

        low, high, ids = 1, len(begins) - 1, None
        while low <= high:
            middle = (low + high) // 2
            tried = without(middle, keep_end=self.limits.truncation == "keep_end")
            prompt = self._ids([self._shortened(tried, self.renderer.render(tried))])[0].prompt
            if len(prompt) <= length:
                ids, high = prompt, middle - 1
            else:
                low = middle + 1
        return self._cut_contents(without(len(begins) - 1, keep_end=True), length) if ids is None else ids

    def _cut_contents(self, example: Example, length: int) -> list[int]:
        text = self.renderer.render(example)
        spans = self.renderer.content_spans(example, text.prompt)
        text, spans = self._shortened_chat(text, spans)
        ids = self._ids([text])[0].prompt
        token_spans = self.tokens.spans(text.prompt)
        keep_end = self.limits.truncation == "keep_end"
        gone: set[int] = set()
        for _, start, stop in sorted(spans[:: 1 if keep_end else -1], key=lambda span: span[0] in _SYSTEM):
            inside = [i for i, (first, last) in enumerate(token_spans) if start <= first < last <= stop]
            more = min(len(inside) - 1, len(ids) - length - len(gone))
            if more > 0:
                gone.update(inside[:more] if keep_end else inside[-more:])
        if len(token_spans) != len(ids) or len(ids) - len(gone) > length:
            raise RowSkip(NO_CONTENT)
        return [token for i, token in enumerate(ids) if i not in gone]

    # --- long texts --------------------------------------------------------------------------------------

    def _shortened(self, example: Example, text: Rendered) -> Rendered:
        """The row without what the limits cut from its long texts anyway, so that it is not tokenised."""
        limits = self.limits
        if any(len(response) > _LONG for response in text.responses):
            parts = [self._part(response, limits.max_length, keep_end=False) for response in text.responses]
            text = replace(text, responses=tuple(parts))
        if len(text.prompt) <= _LONG:
            return text
        if limits.max_prompt_length is None:
            # It has no room for an answer.
            prompt = self._part(text.prompt, limits.max_length, keep_end=False)
            return replace(text, prompt=prompt, least=None)
        if text.start:
            keep_end = limits.truncation == "keep_end"
            return replace(text, prompt=self._part(text.prompt, limits.max_prompt_length, keep_end=keep_end))
        return self._shortened_chat(text, self.renderer.content_spans(example, text.prompt))[0]

    def _shortened_chat(
        self, text: Rendered, spans: list[tuple[str, int, int]]
    ) -> tuple[Rendered, list[tuple[str, int, int]]]:
        """The prompt of a chat with its long contents shortened, and where they are in it."""
        if len(text.prompt) <= _LONG or self.limits.max_prompt_length is None:
            return text, spans
        keep_end = self.limits.truncation == "keep_end"
        prompt, done, shortened = "", 0, []
        for role, start, stop in spans:
            prompt += text.prompt[done:start]
            part = self._part(text.prompt[start:stop], self.limits.max_prompt_length, keep_end=keep_end)
            shortened.append((role, len(prompt), len(prompt) + len(part)))
            prompt, done = prompt + part, stop
        prompt += text.prompt[done:]
        least = None if text.least is None else text.least - len(text.prompt) + len(prompt)
        return replace(text, prompt=prompt, least=least), shortened

    def _part(self, text: str, tokens: int, *, keep_end: bool) -> str:
        """A long text without its middle: more than so many tokens of its beginning, or with `keep_end` of
        its end, and some words of the other end, since a token may reach over it. Else the text as it is."""
        size = _LONG // 2 + _LONG_TOKEN * tokens
        if len(text) <= 3 * size:
            return text
        last = len(text) - size
        stop = _WORD_END.search(text, 0 if keep_end else size // 2, size)
        start = _WORD_END.search(text, last if keep_end else last + size // 2)
        if stop is None or start is None:
            return text
        before, after = text[: stop.start()], text[start.start() :]
        count = len(self.tokens.encode([after if keep_end else before])[0])
        return before + after if count > tokens else text


@dataclass(frozen=True, slots=True)
class _Tail:
    """The end of a prompt that is tokenised again with each response, and its ids alone."""

    text: str
    ids: list[int]


def prompt_key(ids: NDArray[np.int32] | bytes) -> int:
    """A hash of a prompt's ids or text, 56 bits: different prompts have different ones, as good as surely."""
    return int.from_bytes(hashlib.blake2b(bytes(ids), digest_size=7).digest())


def require_unicode(prompt: str) -> None:
    """Raise UserError for a prompt with what Python makes of bytes that are not UTF-8."""
    if broken := SURROGATE.search(prompt):
        raise UserError(f"prompt: {ascii(broken[0])[1:-1]} is no valid Unicode; give the text as UTF-8")


def encode_prompt(
    tokenizer: Tokenizer,
    prompt: Side,
    template: TemplateChoice,
    *,
    tools: list[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    responses: Sequence[Side] = (),
) -> NDArray[np.int32]:
    """int32[>=1] ids of a prompt to answer, text or messages: what training makes of it, uncut.

    `tools` and `template_kwargs` go to the chat template, as a row's own do in training. `responses`: those
    of the row, where it has some; the opening of an answer may depend on them (a thinking block, say).

    Raises UserError when the template refuses it, when it is no valid Unicode (of a command line or stdin
    that is not UTF-8), or when it is empty and there is no BOS.
    """
    tokens = _Tokens(tokenizer)
    try:
        rendered = Renderer(tokenizer, template).render_prompt(prompt, tools, template_kwargs, responses)
    except RowSkip as drop:
        raise UserError(f"prompt: {drop.reason}") from drop
    require_unicode(rendered.prompt)
    ids = tokens.started(rendered, tokens.encode([rendered.prompt])[0])
    if not ids:
        if tokens.bos is None:
            raise UserError(f"prompt: {NO_CONTEXT}")
        ids = [tokens.bos]
    return _int32(ids)


class _Tokens:
    """A tokenizer without special tokens, truncation or padding, in batches."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.backend = plain_backend(tokenizer)
        self.pieces = Pieces(self.backend) if self.backend is not None and can_be_cut(self.backend) else None
        self.bos: int | None = tokenizer.bos_token_id
        self.leading = self._leading()
        self.added: dict[str, int] = tokenizer.get_added_vocab()
        self._tails: dict[str, list[int]] = {}
        self._glued = self.encode(["\na", "\n", "a"])

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text as it is."""
        if not texts:
            return []
        if self.pieces is not None:
            return [ids for part in _portions(texts) for ids in self.pieces.encode(part)]
        if self.backend is not None:
            # Half the time of calling the tokenizer, which also works out offsets and masks.
            encode = partial(self.backend.encode_batch_fast, add_special_tokens=False)
            return [encoding.ids for part in _portions(texts) for encoding in encode(part)]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(row) for row in ids]

    def of_tail(self, text: str) -> list[int]:
        """Ids of the end of a prompt: mostly the same for all rows, so they are remembered."""
        if text not in self._tails:
            if len(self._tails) >= _TAILS:
                self._tails.clear()
            self._tails[text] = self.encode([text])[0]
        return self._tails[text]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(first, last + 1) character of each token; nothing where the tokenizer cannot tell."""
        if self.backend is None:
            return []
        return list(self.backend.encode(text, add_special_tokens=False).offsets)

    def started(self, text: Rendered, prompt: list[int]) -> list[int]:
        """The prompt with the tokenizer's own leading tokens, where raw text does not bring them itself."""
        leading = self.leading if text.start else []
        return prompt if prompt[: len(leading)] == leading else [*leading, *prompt]

    def continuation(self, text: str) -> list[int]:
        """Ids of `text` as the continuation of other text.

        SentencePiece models put a space before a text of its own; there, an anchor goes before it and
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
        starts = range(len(whole) - len(plain) + 1)
        start = next((i for i in starts if whole[i : i + len(plain)] == plain), 0)
        return whole[:start]


def plain_backend(tokenizer: Tokenizer) -> Any:
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
