"""Ollama's Modelfile beside a GGUF file: where it is, how a conversation is written, and where answers end.

Ollama has templates of its own (Go's text/template) and guesses one from the file's chat template. Here it is
derived: the chat template is a sequence of turns if every role is written as a beginning, the content and an
end. Where it does more than that (tools, thinking, a date), no TEMPLATE is written and Ollama guesses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_ROLES: Final = ("system", "user", "assistant")
# Stand for contents, where a template is read; no template contains them.
_MARKS: Final = {"system": "\ue000", "user": "\ue001", "assistant": "\ue002"}
_SAMPLING: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
}


@dataclass(frozen=True)
class Turns:
    """How a chat template writes a conversation: what stands before and after the content of each role, what
    before an answer, and the system text that it writes where there is none."""

    around: Mapping[str, tuple[str, str]]
    opening: str
    default: str

    def text(self, roles: Sequence[str]) -> str:
        """A conversation of the marks of these roles."""
        turns = [_MARKS[role].join(self.around[role]) for role in roles]
        if self.default and roles[0] != "system":
            turns.insert(0, self.default.join(self.around["system"]))
        return "".join(turns) + self.opening

    def in_go(self) -> str:
        """As a template of Ollama's, which ranges over messages."""
        branches = [
            f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for role, (before, after) in self.around.items()
        ]
        inner = "{{ else ".join(branches)
        return f"{{{{ range .Messages }}}}{{{{ {inner}{{{{ end }}}}{{{{ end }}}}{self.opening}"


def modelfile(folder: Path, file: str) -> tuple[str, list[str]]:
    """The Modelfile for the GGUF file of this name, and notes for a person.

    Args:
        folder: that the tokenizer, and generation_config.json if there is one, are in.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lines, notes = [f"FROM ./{file}"], []
    turns = turns_of(tokenizer)
    if turns is None:
        notes.append(
            "the chat template is more than a sequence of turns: the Modelfile has no TEMPLATE, and Ollama "
            "takes its own for the chat template in the file (`ollama show --template` shows it)"
        )
    else:
        lines.append(f'TEMPLATE """{turns.in_go()}"""')
        if turns.default:
            lines.append(f'SYSTEM """{turns.default}"""')
    sampling = _json(folder / "generation_config.json")
    named = sampling.get("eos_token_id", _json(folder / "config.json").get("eos_token_id"))
    ids = dict.fromkeys([tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])])
    texts = [str(tokenizer.convert_ids_to_tokens(number)) for number in ids if number is not None]
    lines += [f"PARAMETER stop {json.dumps(text)}" for text in texts]
    lines += [
        f"PARAMETER {name} {sampling[key]:g}"
        for key, name in _SAMPLING.items()
        if isinstance(sampling.get(key), int | float)
    ]
    return "\n".join(lines) + "\n", notes


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def turns_of(tokenizer: PreTrainedTokenizerFast) -> Turns | None:
    """How the tokenizer's chat template writes a conversation; None if it does more than write turns."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    # llama.cpp puts the token that begins a text before it.
    begins = tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    lead = str(tokenizer.bos_token) if begins else ""

    def render(*roles: str, answer: bool = True) -> str:
        messages = [{"role": role, "content": _MARKS[role]} for role in roles]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        return str(text).removeprefix(lead)

    try:
        turns = _read_turns(render)
        # A template may refuse a system text (gemma's does).
        kinds = [("user",), ("user", "assistant", "user")]
        kinds += [("system", *roles) for roles in kinds] if "system" in turns.around else []
        if any(turns.text(roles) != render(*roles) for roles in kinds):
            return None
    except (ValueError, TemplateError):
        return None
    pieces = [turns.opening, turns.default, *(text for around in turns.around.values() for text in around)]
    # Neither Go's templates nor a Modelfile could hold these.
    return None if any(mark in piece for piece in pieces for mark in ("{{", "}}", '"""')) else turns


def _read_turns(render: Callable[..., str]) -> Turns:
    """What a template of turns would consist of. Raises ValueError where it is none."""
    user, assistant = _MARKS["user"], _MARKS["assistant"]
    _, user_after = render("user", answer=False).split(user)
    first, after = render("user").split(user)
    opening = _without(after, user_after, "")
    _, between, end = _split(render("user", "assistant", answer=False), user, assistant)
    around = {"assistant": (_without(between, user_after, ""), end)}
    _, _, second, _ = _split(render("user", "assistant", "user"), user, assistant, user)
    user_before = _without(second, end, "")
    around["user"] = (user_before, user_after)
    default = ""
    try:
        system_before, between, _ = _split(render("system", "user"), _MARKS["system"], user)
    except TemplateError:
        return Turns(around, opening, default)
    around["system"] = (system_before, _without(between, "", user_before))
    if first != user_before:
        default = _without(_without(first, "", user_before), *around["system"])
    return Turns({role: around[role] for role in _ROLES}, opening, default)


def _split(text: str, *marks: str) -> list[str]:
    """The parts of a text around marks that follow each other in it."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise ValueError(f"{mark!r} is not in the text")
        parts.append(part)
    return [*parts, text]


def _without(text: str, start: str, end: str) -> str:
    if not (text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)):
        raise ValueError(f"{text!r} does not begin with {start!r} and end with {end!r}")
    return text[len(start) : len(text) - len(end)]
