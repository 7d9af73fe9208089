"""A row or two of every format of pairs, as published data sets have them, and ways to break them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


BOTH = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
SHP = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 9, "score_B": 3, "post_id": "x"}
COMPLETION = {"model": "m", "annotations": {"helpfulness": {"Rating": "4"}}, "critique": "good"}

ROWS: dict[str, list[dict[str, Any]]] = {
    "preference": [{"prompt": "q", "chosen": "a", "rejected": "b"}],
    "preference-implicit": [BOTH],
    "hh": [
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
    "ultrafeedback": [
        {"prompt": "q", "prompt_id": "0", **BOTH, "messages": [], "score_chosen": 8.5, "score_rejected": 6}
    ],
    "argilla": [{"dataset": "d", **BOTH, "chosen_rating": 5.0, "rejected_rating": 4.0}],
    "argilla-instruction": [
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b", "chosen_rating": 5.0}
    ],
    "openai": [
        {
            "input": {"messages": [user("q")], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [assistant("a")],
            "non_preferred_output": [assistant("b")],
        }
    ],
    "shp": [{**SHP, "labels": 1, "score_ratio": 3.0}],
    "ultrafeedback-ratings": [
        {
            "instruction": "q",
            "models": ["m"] * 4,
            "completions": [
                {**COMPLETION, "response": text, "overall_score": score}
                for text, score in (("c", 6.0), ("a", 9.0), ("b", 2.0), ("d", 9.0))
            ],
        }
    ],
    "distilabel": [{"instruction": "q", "generations": ["b", "a", "c"], "ratings": [1, 5, None]}],
    "distilabel-input": [{"input": "q", "generations": ["a", "b"], "rating": [9.0, 8.0], "system": ""}],
    "helpsteer3": [
        {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": -2, "domain": "d"}
    ],
    "helpsteer2-preference": [
        {"prompt": "q", "response_1": "b", "response_2": "a", "preference_strength": 3, "split": "train"}
    ],
    "helpsteer": [
        {"prompt": "q", "response": "b", "helpfulness": 2, "correctness": 4, "verbosity": 1},
        {"prompt": "q", "response": "a", "helpfulness": 4, "correctness": 4, "verbosity": 1},
    ],
    "stackexchange": [{"qid": 1, "question": "q", "response_j": "a", "response_k": "b", "date": "d"}],
    "responses": [{"prompt": "q", "responses": ["b", "a"], "pairs": [[1, 0]], "sft_target": "a"}],
    "orca": [{"system": "", "question": "q", "chosen": "a", "rejected": "b"}],
    "orca-input": [{"input": "q", "chosen": "a", "rejected": "b", "rating": [9.0, 8.0]}],
    "argilla-prompt": [{"prompt": "q", "chosen_response": "a", "rejected_response": "b"}],
    "argilla-question": [
        {"system": "", "question": "q", "chosen_response": "a", "rejected_response": "b"},
    ],
    "argilla-input": [{"input": "q", "chosen_response": "a", "rejected_response": "b"}],
    "alpaca-preference": [
        {"instruction": "q", "input": "", "history": [], "chosen": "a", "rejected": "b", "system": None}
    ],
    "messages-preference": [
        {"messages": [user("q")], "chosen": assistant("a"), "rejected": assistant("b"), "tools": []}
    ],
    "sharegpt-preference": [
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        }
    ],
    "conversation-preference": [
        {"conversation": [user("q")], "chosen": assistant("a"), "rejected": assistant("b")}
    ],
    "query-preference": [{"query": "q", "chosen": "a", "rejected": "b"}],
    "user-preference": [{"user": "q", "chosen": "a", "rejected": "b"}],
    "context-preference": [{"context": [user("q")], "chosen": "a", "rejected": "b"}],
    "kto": [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "b", "label": False},
    ],
}

# Rows with one answer "a" to "q", and with none.
CHAT = [user("q"), assistant("a")]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ALPACA = {"instruction": "q", "input": "", "output": "a"}
SINGLE: dict[str, dict[str, Any]] = {
    "unpaired": {"prompt": "q", "completion": "a", "label": True},
    "alpaca-unpaired": {**ALPACA, "kto_tag": True},
    "messages-unpaired": {"messages": CHAT, "label": True},
    "sharegpt-unpaired": {"conversations": SHAREGPT, "kto_tag": True},
    "conversation": {"messages": CHAT, "tools": None},
    "sharegpt": {"id": "x", "conversations": SHAREGPT, "system": ""},
    "prompt-completion": {"prompt": "q", "completion": "a"},
    "prompt-response": {"prompt": "q", "response": "a"},
    "alpaca": ALPACA,
    "dolly": {"instruction": "q", "context": "", "response": "a", "category": "open_qa"},
    "question-response": {"id": "x", "system_prompt": "", "question": "q", "response": "a"},
    "prompt-output": {"prompt": "q", "output": "a"},
    "input-output": {"input": "q", "output": "a"},
    "user-assistant": {"system": "", "user": "q", "assistant": "a"},
    "chat": {"conversation": CHAT},
    "question-answer": {"question": "q", "answer": "a"},
}
PROMPTS: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": "q", "facts": {"a": 1}},
    "messages-prompts": {"messages": [user("q")]},
    "sharegpt-prompts": {"conversations": [{"from": "human", "value": "q"}]},
    "conversation-prompts": {"conversation": [user("q")]},
    "alpaca-prompts": {"instruction": "q", "input": ""},
    **{f"{name}-prompts": {name: "q"} for name in ("question", "query", "input", "user", "context")},
}

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, 2.5, 10**400, float("nan"), float("inf"), 1e308),
    *("", " ", "text", "\ud83d", "\x00", "\n\nHuman: x\n\nAssistant:", "[1", "{}", "q" * 5000),
    *([], {}, [[]], [None], [0, 0], [{"role": "user"}], [{"role": "assistant", "content": "x"}]),
    *(
        {"role": ["user"], "content": ["q"]},
        {"messages": []},
        [{"role": "x", "content": [{"type": "image"}]}],
    ),
]


def mutate(row: Any, rng: random.Random) -> Any:
    """The row with one to three changes, at any depth."""
    changed = copy.deepcopy(row)
    for _ in range(rng.randint(1, 3)):
        places = list(containers(changed))
        if not places:
            return rng.choice(VALUES)
        holder = rng.choice(places)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1:
                other = rng.choice(places)
                holder[key] = copy.deepcopy(
                    next(iter(other.values())) if isinstance(other, dict) else other[0]
                )
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return changed


def containers(value: Any) -> Any:
    """All filled objects and lists within a value, the value itself included."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def line_of(row: Any, rng: random.Random) -> bytes:
    """A line of the file; one in fifty is no JSON."""
    content = json.dumps(row).encode()
    if rng.random() < 0.02:
        cut = rng.randrange(1, len(content) + 1)
        return content[:cut] + rng.choice([b"\xff\xfe", b"{", b'"', b"[" * 3000])
    return content
