"""Ollama's Modelfile: the chat template as turns, stop words, parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_folders import CHATML, make_tokenizer

from localdpo.gguf.modelfile import modelfile, turns_of

DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DATED = "Today is 26 July.{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
BRACES = "{% for m in messages %}{{ '{{' + m.role + '}}' + m.content }}{% endfor %}{{ '{{assistant}}' }}"


def test_a_modelfile(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DEFAULT
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True})
    )
    text, notes = modelfile(tmp_path, "model.gguf")
    assert text == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n'
        '{{ .Content }}<|im_end|>\n{{ else if eq .Role "user" }}<|im_start|>user\n'
        '{{ .Content }}<|im_end|>\n{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
        '{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'SYSTEM """Be kind."""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|pad|>"\n'
        "PARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER repeat_penalty 1.1\n"
    )
    assert notes == []


def test_a_template_without_system_text() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|pad|>"})
    tokenizer.chat_template = GEMMA.replace("{{ bos_token }}", "")
    turns = turns_of(tokenizer)
    assert turns is not None
    assert dict(turns.around) == {
        "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
    }
    assert (turns.opening, turns.default) == ("<start_of_turn>model\n", "")


@pytest.mark.parametrize("template", [DATED, BRACES, "{{ messages[0].content }}", None])
def test_templates_that_are_more_than_turns_are_left_to_ollama(tmp_path: Path, template: str | None) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    text, notes = modelfile(tmp_path, "m.gguf")
    assert text == 'FROM ./m.gguf\nPARAMETER stop "<|im_end|>"\n'
    assert notes[0].startswith("the chat template is more than a sequence of turns")
