"""From a row of text or messages to the rendered text of its prompt and of each response.

Chat: the prompt is what a chat program would send, the template with its generation prompt; what the
template writes after it, up to and with the end of the turn, is the response. Where the template writes
another opening for an answer that is already there (a thinking block that only the generation prompt has,
say), the prompt ends at the opening it does write, which a probe answer finds. Raw: the text as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from localdpo.core.errors import UserError
from localdpo.data.texts import common_prefix, transcript_messages
from localdpo.data.types import Example, Message, Side, TemplateChoice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for an answer to find where a template puts it. Plain letters: no template strips or rewrites them.
PROBE = "localdpoprobeanswer"
HIDDEN_ANSWER = "the chat template does not show where the answer starts"


class RowDropped(Exception):
    """This row cannot be trained on. The reason is counted in the report; it is no error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a row: the prompt, and what follows it in each branch.

    `close[k]`: response k still needs the end-of-sequence token, since its text does not end with one.
    `start`: the prompt gets the tokenizer's own leading special tokens (a template writes them itself).
    """

    prompt: str
    responses: tuple[str, ...]
    close: tuple[bool, ...]
    start: bool


@dataclass(frozen=True, slots=True)
class _Ending:
    """What a template writes after an answer (`tail`), and the part of it that ends the turn ("" if none)."""

    tail: str
    end: str


class Renderer:
    """Writes rows as text for one tokenizer. `chat` says whether its chat template is used.

    Raises UserError for template "chat" with a tokenizer that has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateChoice) -> None:
        self.tokenizer = tokenizer
        has_template = bool(tokenizer.chat_template)
        if template == "chat" and not has_template:
            raise UserError("data.template: chat, but the tokenizer has no chat template; use raw")
        self.template = template
        self.chat = has_template and template != "raw"
        self._ending: _Ending | None = None

    def render(self, example: Example) -> Rendered:
        """The text of one row. Raises RowDropped with the reason when the template cannot write it."""
        if self.chat and not example.as_is:
            return self._render_chat(example)
        prompt, *responses = (self._plain(side) for side in (example.prompt, *example.responses))
        eos = self.tokenizer.eos_token
        close = tuple(not (eos and text.endswith(eos)) for text in responses)
        return Rendered(prompt, tuple(responses), close, start=True)

    def render_prompt(
        self, prompt: Side, tools: list[Any] | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> Rendered:
        """The text of a prompt to answer, with no responses."""
        if not self.chat:
            return Rendered(self._plain(prompt), (), (), start=True)
        messages = side_messages(prompt, "user")
        return Rendered(
            self._apply(messages, tools or [], dict(template_kwargs or {}), opening=True), (), (), start=False
        )

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

    def _render_chat(self, example: Example) -> Rendered:
        prompt, answers = conversation(example)
        tools, kwargs = example.tools or [], dict(example.template_kwargs)
        wholes = [self._apply([*prompt, answer], tools, kwargs) for answer in answers]
        opening = self._apply(prompt, tools, kwargs, opening=True) if prompt else ""
        if not opening or not all(whole.startswith(opening) for whole in wholes):
            opening = self._written_opening(prompt, wholes, tools, kwargs)
        if self._ending is None:
            self._ending = self._find_ending(prompt, tools, kwargs)
        ends = [self._end_turn(whole[len(opening) :], self._ending) for whole in wholes]
        texts, closed = zip(*ends, strict=True)
        return Rendered(opening, texts, tuple(not done for done in closed), start=False)

    def _apply(
        self, messages: list[Message], tools: list[Any], kwargs: dict[str, Any], opening: bool = False
    ) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools or None, add_generation_prompt=opening, tokenize=False, **kwargs
            )
        except (TemplateError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RowDropped(f"the chat template refuses the row: {error}") from error
        return str(text)

    def _probe(self, prompt: list[Message], tools: list[Any], kwargs: dict[str, Any]) -> tuple[str, str]:
        """What the template writes before and after an answer to `prompt`."""
        text = self._apply([*prompt, {"role": "assistant", "content": PROBE}], tools, kwargs)
        before, found, after = text.rpartition(PROBE)
        if not found:
            raise RowDropped(HIDDEN_ANSWER)
        return before, after

    def _written_opening(
        self, prompt: list[Message], wholes: list[str], tools: list[Any], kwargs: dict[str, Any]
    ) -> str:
        before, _ = self._probe(prompt, tools, kwargs)
        # Never inside an answer; shorter than `before` only if the opening depends on the answer.
        shared = common_prefix([before, *wholes])
        if len(shared) < len(before):
            conversation = self._apply(prompt, tools, kwargs).rstrip() if prompt else ""
            if not shared.startswith(conversation):
                raise RowDropped(HIDDEN_ANSWER)
        return shared

    def _find_ending(self, prompt: list[Message], tools: list[Any], kwargs: dict[str, Any]) -> _Ending:
        _, tail = self._probe(prompt, tools, kwargs)
        # Control tokens are not always marked special (Gemma's <end_of_turn> once was not): all added count.
        added = [token for token in self.tokenizer.get_added_vocab() if token.strip()]
        stops = [(tail.index(token), -len(token)) for token in added if token in tail]
        if not stops:
            return _Ending(tail, "")
        place, length = min(stops)
        return _Ending(tail, tail[: place - length])

    def _end_turn(self, text: str, ending: _Ending) -> tuple[str, bool]:
        """`text` up to its one end of turn, and whether it has one; what follows the end is left out."""
        body = text.removesuffix(ending.tail) if ending.tail else text
        if not ending.end:
            eos = self.tokenizer.eos_token
            return body, bool(eos and body.endswith(eos))
        if body == text:
            place = text.rfind(ending.end)
            if place < 0:
                return text, False
            body = text[:place]
        while body.endswith(ending.end):
            body = body.removesuffix(ending.end)
        return body + ending.end, True


def side_messages(side: Side, role: str) -> list[Message]:
    """A side as messages; plain text becomes one message of `role`, a Human/Assistant transcript several."""
    if not isinstance(side, str):
        return list(side)
    return transcript_messages(side) or [{"role": role, "content": side}]


def conversation(example: Example) -> tuple[list[Message], list[Message]]:
    """The prompt's messages and one assistant message per response; plain text is wrapped."""
    prompt = side_messages(example.prompt, "user")
    is_transcript = isinstance(example.prompt, str) and transcript_messages(example.prompt) is not None
    answers: list[Message] = []
    for response in example.responses:
        if isinstance(response, str):
            text = response.removeprefix(" ") if is_transcript else response
            answers.append({"role": "assistant", "content": text})
        else:
            answers.extend(response)
    return prompt, answers
