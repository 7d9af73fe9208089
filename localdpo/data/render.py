"""From a row of text or messages to the rendered text of its prompt and of each response.

Chat: the prompt is what a chat program would send, the template with its generation prompt; what the
template writes after it, up to and with the end of the turn, is the response. Where the template writes
another opening for an answer that is already there (a thinking block that only the generation prompt has,
say), the prompt ends at the opening it does write. Where it writes the conversation itself otherwise once an
answer follows (system text only in front of a last user message), the conversation is the generation
prompt's. An answer ends with the first of the model's own end tokens; one that was cut has none. Raw: the
text as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from localdpo.core.errors import UserError
from localdpo.core.text import common_prefix
from localdpo.data.chat_template import (
    CALL,
    FORMED,
    REASONING,
    Form,
    LeftOut,
    TemplateLimit,
    forms_of,
    garbled,
    left_out,
    run_template,
)
from localdpo.data.fields import RowSkip
from localdpo.data.messages import as_conversation, prompt_messages
from localdpo.data.types import Example, Message, Side, TemplateChoice, Tokenizer

# Stand for an answer, and for the ends of a content, to find where a template puts them. Plain letters: no
# template strips or rewrites them.
PROBE, START, STOP = "localdpoprobeanswer", "localdpostartmark", "localdpostopmark"
HIDDEN_ANSWER = "the chat template does not show where the answer starts"
NO_ANSWER = "the chat template leaves out the whole text of an answer"
ENDS_EARLY = "an end token occurs within an answer, so generation would stop there"
NOTHING_CUT = "an answer that was cut has no text"
# Renderings that run into a limit before the template is given up: each takes seconds.
LIMIT_ROWS: Final = 2
# Options by which public templates choose how the generation prompt ends.
_OPENING_OPTIONS: Final = tuple(
    {name: value} for name in ("enable_thinking", "thinking") for value in (False, True)
)
# No control token is longer.
_WINDOW: Final = 200


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a row: the prompt, and what follows it in each branch.

    `close[k]`: response k still needs the end-of-sequence token: it ended, and its text has none at its end.
    `start`: the prompt gets the tokenizer's own leading special tokens (a template writes them itself).
    `least`: characters of the prompt before the assistant's opening, where that was cut to what all branches
    share and may be cut further, to a boundary of tokens; None elsewhere.
    `sent`: the generation prompt. `left_out`: what the template left out.
    """

    prompt: str
    responses: tuple[str, ...]
    close: tuple[bool, ...]
    start: bool
    least: int | None = None
    sent: str = ""
    left_out: LeftOut = field(default_factory=lambda: LeftOut(frozenset()))


@dataclass(frozen=True, slots=True)
class _Opened:
    """A prompt, what follows it in each branch, the generation prompt, and `least` as in Rendered."""

    prompt: str
    rests: tuple[str, ...]
    sent: str
    least: int | None = None


@dataclass(frozen=True, slots=True)
class _Ending:
    """What a template writes after an answer's text: the part that ends the turn, and what follows it.

    `ends`: that part holds one of the model's end tokens.
    """

    end: str
    rest: str
    ends: bool


@dataclass(frozen=True, slots=True)
class _Context:
    """What a template is given besides messages."""

    source: str
    tools: list[Any]
    kwargs: dict[str, Any]
    form: Form = field(default_factory=Form)


class Renderer:
    """Writes rows as text for one tokenizer. `chat` says whether its chat template is used.

    Args:
        end_ids: the token ids at which the model's answers end (config.json and generation_config.json may
            list several); None: the tokenizer's end-of-sequence token alone.
        template_kwargs: options of the chat template for every row; a row's own come before them.

    Raises UserError for template "chat" with a tokenizer that has none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: TemplateChoice,
        *,
        end_ids: Collection[int] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        has_template = bool(tokenizer.chat_template)
        if template == "chat" and not has_template:
            raise UserError("data.template: chat, but the tokenizer has no chat template; use raw")
        self.template = template
        self.chat = has_template and template != "raw"
        self.template_kwargs = dict(template_kwargs or {})
        added = tokenizer.get_added_vocab()
        ids = set(end_ids or ()) | (
            {int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set()
        )
        # By text, since that is what a template writes; an end that is no added token is no end there.
        ends = {token for token, number in added.items() if number in ids} | {tokenizer.eos_token or ""}
        self._ends = tuple(sorted(ends - {""}, key=len, reverse=True))
        # Control tokens are not always marked special (Gemma's <end_of_turn> once was not): all added count.
        self.control_tokens = _any_of([token for token in added if token.strip()])
        self._end = _any_of(self._ends)
        self._special: dict[str, str] = tokenizer.special_tokens_map
        self._endings: dict[tuple[Any, ...], _Ending] = {}
        self._closing: dict[tuple[str, str], str] = {}
        # What stopped a rendering, for each that ran into a limit.
        self.limits: list[str] = []

    def render(self, example: Example) -> Rendered:
        """The text of one row. Raises RowSkip with the reason when the template cannot write it."""
        if self.chat and not example.as_is:
            return self._render_chat(example)
        prompt, *responses = (self._plain(side) for side in (example.prompt, *example.responses))
        texts, close = [], []
        for text, ended in zip(responses, example.ended, strict=True):
            if not ended:
                self._require_open(text)
            texts.append(self._ended_once(text))
            close.append(ended and not texts[-1].endswith(self._ends))
        return Rendered(prompt, tuple(texts), tuple(close), start=True)

    def render_prompt(
        self,
        prompt: Side,
        tools: list[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        responses: Sequence[Side] = (),
    ) -> Rendered:
        """The text of a prompt to answer: what it is in training, with these responses or with plain ones."""
        if not self.chat:
            return Rendered(self._plain(prompt), (), (), start=True)
        messages, answers = as_conversation(prompt, responses)
        context = self._context(tools, template_kwargs)
        opened, _, _ = self._in_best_form(messages, answers, context)
        return Rendered(opened.prompt, (), (), start=False, least=opened.least, sent=opened.sent)

    def note(self, example: Example, rendered: Rendered) -> str | None:
        """How the prompt that is trained differs from the generation prompt, and what would close the
        difference; None where nothing differs."""
        trained, sent = rendered.prompt, rendered.sent
        if not sent or trained == sent:
            return None
        place = len(common_prefix([trained, sent]))
        cut = max(
            (token.start() for token in self._around(sent, place) if token.start() < place), default=place
        )
        tails = (trained[cut:], sent[cut:])
        if tails not in self._closing:
            self._closing[tails] = self._closing_words(example)
        return (
            f"the prompt that is trained ends in {_shown(tails[0])}, "
            f"a generation prompt in {_shown(tails[1])}{self._closing[tails]}"
        )

    def content_spans(self, example: Example, prompt: str) -> list[tuple[str, int, int]]:
        """(role, start, end) of each message's content in the rendered prompt, as far as it is found."""
        messages = prompt_messages(example.prompt)
        marked = [_marked(message, i) for i, message in enumerate(messages)]
        text = self.render(replace(example, prompt=marked)).prompt
        spans: list[tuple[str, int, int]] = []
        plain, start = "", None
        for piece in re.split(f"({START}\\d+x|{STOP})", text):
            if piece.startswith(START):
                start = (int(piece[len(START) : -1]), len(plain))
            elif piece == STOP and start is not None:
                spans.append((str(messages[start[0]].get("role")), start[1], len(plain)))
                start = None
            elif piece != STOP:
                plain += piece
        return spans if plain == prompt else []

    def _plain(self, side: Side) -> str:
        if isinstance(side, str):
            return side
        if self.template == "raw":
            raise UserError(
                "data.template: raw keeps text as it is, but rows hold messages; use auto or chat"
            )
        raise UserError(
            "the rows hold messages and the tokenizer has no chat template; "
            "use a chat model's tokenizer, or data with plain text"
        )

    def _context(self, tools: list[Any] | None, kwargs: Mapping[str, Any] | None) -> _Context:
        # With several named templates, which one depends on the tools.
        source = self.tokenizer.get_chat_template(tools=tools or None)
        return _Context(str(source), tools or [], {**self.template_kwargs, **(kwargs or {})})

    def _render_chat(self, example: Example) -> Rendered:
        prompt, answers = as_conversation(example.prompt, example.responses)
        # The end tokens of an answer that was cut stay, to be seen.
        answers = [
            self._unended(answer) if ended else answer
            for answer, ended in zip(answers, example.ended, strict=True)
        ]
        context = self._context(example.tools, example.template_kwargs)
        opened, lost, context = self._in_best_form(prompt, answers, context)
        if CALL in lost.parts:
            raise RowSkip(f"the chat template leaves out {CALL}")
        texts, close = [], []
        ending = self._ending_of(prompt, context)
        for answer, rest, ended in zip(answers, opened.rests, example.ended, strict=True):
            body, end, done = self._end_turn(rest, ending)
            text = body + end if ended else self._unstripped(body, answer)
            first = self._end.search(text)
            if ended and first is not None and text[first.end() :].strip():
                raise RowSkip(ENDS_EARLY)
            if not ended:
                self._require_open(text)
            texts.append(text)
            close.append(ended and not done)
            bare = self.control_tokens.sub("", text).strip()
            if not bare and (str(answer.get("content") or "").strip() or REASONING in lost.parts):
                raise RowSkip(NO_ANSWER)
        return Rendered(
            opened.prompt,
            tuple(texts),
            tuple(close),
            start=False,
            least=opened.least,
            sent=opened.sent,
            left_out=lost,
        )

    def _in_best_form(
        self, prompt: list[Message], answers: list[Message], context: _Context
    ) -> tuple[_Opened, LeftOut, _Context]:
        """The row opened in the first form of messages that loses nothing a form can bring back, else in that
        which loses least."""
        best: tuple[int, _Opened, LeftOut, _Context] | None = None
        refused: RowSkip | None = None
        for form in forms_of([*prompt, *answers], context.source):
            formed = replace(context, form=form)
            try:
                opened = self._open(prompt, answers, formed)
            except RowSkip as drop:
                refused = refused or drop
                continue
            lost = left_out(prompt, answers, context.tools, opened.prompt, opened.rests)
            written = opened.prompt + "".join(opened.rests)
            faults = len(lost.parts & FORMED) + 2 * garbled([*prompt, *answers], written)
            if best is None or faults < best[0]:
                best = (faults, opened, lost, formed)
            if not faults:
                break
        if best is None:
            raise refused or RowSkip(HIDDEN_ANSWER)
        return best[1:]

    def _apply(self, messages: list[Message], context: _Context, opening: bool = False) -> str:
        try:
            return run_template(
                context.source,
                context.form.of(messages),
                context.tools,
                {**self._special, **context.kwargs},
                opening=opening,
            )
        except TemplateLimit as limit:
            self.limits.append(str(limit))
            require_end(self.limits)
            raise RowSkip(f"the chat template {limit}") from limit
        # A template is a program of others: it divides by zero, recurses or asks for memory as it likes.
        except Exception as error:
            name, words = type(error).__name__, " ".join(str(error).split())[:200]
            reason = words if name.startswith("Template") else f"{name}: {words}"
            raise RowSkip(f"the chat template refuses the row: {reason}") from error

    # --- where the answer starts -------------------------------------------------------------------------

    def _open(self, prompt: list[Message], answers: list[Message], context: _Context) -> _Opened:
        """The one place that decides where a prompt ends, with or without answers."""
        sent = self._apply(prompt, context, opening=True) if prompt else ""
        wholes = [self._apply([*prompt, answer], context) for answer in answers]
        if sent and wholes and all(whole.startswith(sent) for whole in wholes):
            return _Opened(sent, tuple(whole[len(sent) :] for whole in wholes), sent)
        before, after = self._probe(prompt, context)
        if not wholes and sent and (before + PROBE + after).startswith(sent):
            return _Opened(sent, (), sent)
        conversation, followed, header, written = self._parted(prompt, sent, before, context)
        if not all(whole.startswith(followed) for whole in wholes):
            raise RowSkip(HIDDEN_ANSWER)
        rests = [whole[len(followed) :] for whole in wholes]
        if header is not None and all(rest.startswith(header) for rest in rests or [written]):
            least, opening = None, header
        else:
            # Never inside an answer; shorter than `written` only if the opening depends on the answer.
            texts, least = [written, *rests], len(conversation)
            opening = self._whole_tokens(common_prefix(texts), texts)
        return _Opened(conversation + opening, tuple(rest[len(opening) :] for rest in rests), sent, least)

    def _probe(self, prompt: list[Message], context: _Context) -> tuple[str, str]:
        """What the template writes before and after an answer to `prompt`."""
        text = self._apply([*prompt, {"role": "assistant", "content": PROBE}], context)
        before, found, after = text.rpartition(PROBE)
        if not found:
            raise RowSkip(HIDDEN_ANSWER)
        return before, after

    def _parted(
        self, prompt: list[Message], sent: str, before: str, context: _Context
    ) -> tuple[str, str, str | None, str]:
        """The conversation as it is sent, and as it is when an answer follows; then the opening of the answer
        in either (None where it is unclear which part of `sent` that is)."""
        if not prompt:
            return "", "", None, before
        content = prompt[-1].get("content")
        marked = (content if isinstance(content, str) else "") + STOP
        shown = [*prompt[:-1], prompt[-1] | {"content": marked}]
        _, in_sent, header = self._apply(shown, context, opening=True).rpartition(STOP)
        _, in_written, written = self._probe(shown, context)[0].rpartition(STOP)
        if in_sent and in_written and sent.endswith(header) and before.endswith(written):
            return sent[: len(sent) - len(header)], before[: len(before) - len(written)], header, written
        shared = common_prefix([sent, before])
        return shared, shared, None, before[len(shared) :]

    def _whole_tokens(self, opening: str, texts: list[str]) -> str:
        """`opening`, which all texts start with, up to where it cuts no control token in two."""
        place = len(opening)
        while True:
            inside = [
                token.start()
                for text in texts
                for token in self._around(text, place)
                if token.start() < place < token.end()
            ]
            if not inside:
                return opening[:place]
            place = min(inside)

    def _around(self, text: str, place: int) -> Iterator[re.Match[str]]:
        return self.control_tokens.finditer(text, max(0, place - _WINDOW), place + _WINDOW)

    def _closing_words(self, example: Example) -> str:
        """The option of the template with which an example like this has no difference, in words."""
        source = self._context(example.tools, None).source
        for option in _OPENING_OPTIONS:
            (name,) = option
            if name not in source or name in example.template_kwargs:
                continue
            kwargs = {**example.template_kwargs, **option}
            try:
                tried = self._render_chat(replace(example, template_kwargs=kwargs))
            except RowSkip:
                continue
            if tried.prompt == tried.sent:
                value = str(option[name]).lower()
                return f"; data.chat_template_kwargs: {{{name}: {value}}} makes them the same"
        return ""

    # --- where the answer ends ---------------------------------------------------------------------------

    def _ended_once(self, text: str) -> str:
        """`text` with one end token, and nothing after it, where it brings some at its end."""
        bare = self._without_ends(text)
        if bare is None:
            return text
        return bare + next(end for end in self._ends if text.startswith(end, len(bare)))

    def _without_ends(self, text: str) -> str | None:
        """`text` without the end tokens at its end, white space between them included; None where none is."""
        bare = text
        while end := next((end for end in self._ends if bare.rstrip().endswith(end)), ""):
            bare = bare.rstrip().removesuffix(end)
        return None if bare == text else bare

    def _unended(self, answer: Message) -> Message:
        """The answer without end tokens of its own: the template writes them."""
        content = answer.get("content")
        bare = self._without_ends(content) if isinstance(content, str) else None
        return answer if bare is None else answer | {"content": bare}

    def _ending_of(self, prompt: list[Message], context: _Context) -> _Ending:
        """How the template ends an answer of text."""
        options = json.dumps(context.kwargs, sort_keys=True, default=str)
        key = (context.source, options, context.form, bool(prompt), bool(context.tools))
        if key not in self._endings:
            tail = self._probe(prompt, context)[1]
            end = self._end.search(tail)
            last = end or self.control_tokens.search(tail)
            place = last.end() if last else 0
            self._endings[key] = _Ending(tail[:place], tail[place:], ends=end is not None)
        return self._endings[key]

    def _require_open(self, text: str) -> None:
        """Raise RowSkip for an answer that was cut, if an end token is in it or if it is empty."""
        if self._end.search(text):
            raise RowSkip(ENDS_EARLY)
        if not text:
            raise RowSkip(NOTHING_CUT)

    def _unstripped(self, text: str, answer: Message) -> str:
        """The rendered text of an answer that was cut, with the white space at its end that templates strip:
        the model wrote on after it."""
        content = answer.get("content")
        words = content.rstrip() if isinstance(content, str) else ""
        return text + str(content)[len(words) :] if words and text.endswith(words) else text

    def _end_turn(self, text: str, ending: _Ending) -> tuple[str, str, bool]:
        """`text` before its one end of turn, that end, and whether it ends the answer; what follows is
        dropped."""
        body = text.removesuffix(ending.rest) if ending.rest else text
        if body.endswith(ending.end):
            answer = body.removesuffix(ending.end)
            return answer, ending.end, ending.ends or body.endswith(self._ends)
        if not ending.ends:
            return body, "", body.endswith(self._ends)
        # An answer of another kind, with an end of its own (a tool call, say): the template has ends, and the
        # last control token is one.
        ends = [*self._end.finditer(text)] or [*self.control_tokens.finditer(text)][-1:]
        if ends and not text[ends[-1].end() :].strip():
            return text[: ends[-1].start()], ends[-1].group(), True
        return body, "", False


def require_end(limits: Sequence[str]) -> None:
    """Raise UserError where so many renderings ran into a limit that the template is given up."""
    if len(limits) >= LIMIT_ROWS:
        raise UserError(f"the chat template {limits[-1]}; give the tokenizer one that ends")


def _marked(message: Message, number: int) -> Message:
    """The message with marks at both ends of its content, white space outside of them."""
    content = message.get("content")
    core = content.strip() if isinstance(content, str) else ""
    if not core:
        return message
    before, _, after = str(content).partition(core)
    return message | {"content": f"{before}{START}{number}x{core}{STOP}{after}"}


def _any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """Any of these texts, the longest first; nothing for none."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _shown(tail: str) -> str:
    return repr(tail) if tail else "nothing more"
