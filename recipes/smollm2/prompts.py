"""Write the prompts of `make real`: an everyday topic, one or two instructions to check, and a least length.

    python recipes/smollm2/prompts.py FOLDER

FOLDER gets train.jsonl (prompts on three quarters of the topics), heldout.jsonl (the same kinds of
instructions, on the other topics) and unseen.jsonl (on those topics, kinds that are in no other prompt). The
same seed gives the same files.
"""

import json
import random
import sys
from pathlib import Path

from localdpo.heuristics.constraints import CONSTRAINTS
from localdpo.out import say

SEED = 0
HELD_OUT_TOPICS = 150
# Prompts of each topic.
TRAIN, HELD_OUT, UNSEEN = 2, 2, 1
# The share of prompts with two instructions.
TWO = 0.3
# Every answer has to say something: else "That is all." keeps to an instruction about an answer's end.
LEAST_WORDS = 6
LEAST = (
    "Use at least {min} words.",
    "Write {min} words or more.",
    "Your answer must have at least {min} words.",
)

UNSEEN_KINDS = ("excludes", "numbered", "paragraphs", "postscript", "upper")
TASKS = (
    "Describe {topic} briefly.",
    "Write a short note about {topic}.",
    "Say something short about {topic}.",
    "Give a short tip about {topic}.",
    "Write a short message to a friend about {topic}.",
    "Tell me briefly what people like about {topic}.",
    "Explain {topic} to a child in a few words.",
    "What comes to mind when you think of {topic}? Be brief.",
)
WORDS = (
    "day",
    "good",
    "home",
    "time",
    "small",
    "people",
    "friend",
    "money",
    "always",
    "often",
    "new",
    "best",
)
OPENINGS = (
    "Well",
    "Here is",
    "In short",
    "Many people",
    "First of all",
    "Let me say",
    "To be honest",
    "Hello",
)
ENDINGS = ("That is all.", "Have a nice day!", "Thank you", "The end.", "I hope this helps.", "Try it today!")
KEYS = ("name", "reason", "place", "use", "size", "opinion", "example", "advice")

# What the parameters of a kind are drawn from.
PARAMETERS = {
    "words": lambda draw: (lambda least: {"min": least, "max": least + 15})(
        draw.choice((10, 15, 20, 25, 30))
    ),
    "sentences": lambda draw: {"n": draw.randint(1, 4)},
    "paragraphs": lambda draw: {"n": draw.randint(2, 3)},
    "lines": lambda draw: {"n": draw.randint(2, 4)},
    "longest_word": lambda draw: {"n": draw.randint(7, 9)},
    "contains": lambda draw: {"word": draw.choice(WORDS)},
    "times": lambda draw: {"word": draw.choice(WORDS), "n": draw.randint(2, 3)},
    "excludes": lambda draw: {"word": draw.choice(("the", "and", "is", "it", "you", "of", "can", "for"))},
    "without_letter": lambda draw: {"letter": draw.choice("bfgkpvwxyz")},
    "exclamations": lambda draw: {"n": draw.randint(1, 3)},
    "starts_with": lambda draw: {"text": draw.choice(OPENINGS)},
    "ends_with": lambda draw: {"text": draw.choice(ENDINGS)},
    "bullets": lambda draw: {"n": draw.randint(2, 4)},
    "numbered": lambda draw: {"n": draw.randint(2, 4)},
    "bold": lambda draw: {"n": draw.randint(1, 2)},
    "placeholders": lambda draw: {"n": draw.randint(1, 2)},
    "parts": lambda draw: {"n": 2},
    "json_keys": lambda draw: {"keys": draw.sample(KEYS, draw.randint(1, 2))},
}
# Of a group only one kind is in a prompt: two would ask for the same thing, or contradict each other.
GROUPS = (
    {"words", "sentences", "paragraphs", "lines", "bullets", "numbered", "parts", "json_keys"},
    {"contains", "times", "excludes", "without_letter", "longest_word", "json_keys"},
    {"lower", "upper", "postscript", "json_keys"},
    {"question", "ends_with", "postscript", "quoted", "exclamations", "json_keys"},
    {"starts_with", "title", "quoted", "bullets", "numbered", "parts", "json_keys", "without_letter"},
    {"no_commas", "json_keys"},
    {"ends_with", "without_letter", "longest_word", "lines", "bullets", "numbered"},
    {"bold", "placeholders", "json_keys"},
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    lines = (Path(__file__).parent / "topics.txt").read_text(encoding="utf-8").splitlines()
    topics = [topic.strip() for line in lines for topic in line.partition(":")[2].split(",")]
    draw.shuffle(topics)
    held_out, trained = topics[:HELD_OUT_TOPICS], topics[HELD_OUT_TOPICS:]
    kinds = [kind for kind in CONSTRAINTS if kind not in UNSEEN_KINDS]
    for name, about, each, of in (
        ("train", trained, TRAIN, kinds),
        ("heldout", held_out, HELD_OUT, kinds),
        ("unseen", held_out, UNSEEN, list(UNSEEN_KINDS)),
    ):
        rows = [row(draw, topic, of) for _ in range(each) for topic in about]
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        say(f"{folder / name}.jsonl: {len(rows)} prompts on {len(about)} topics")


def row(draw: random.Random, topic: str, kinds: list[str]) -> dict[str, object]:
    """A prompt about a topic and its constraints: one or two of some kinds, and the least number of words."""
    chosen = [draw.choice(kinds)]
    others = [kind for kind in kinds if not any({kind, chosen[0]} <= group for group in GROUPS)]
    others = [kind for kind in others if kind != chosen[0]]
    if others and draw.random() < TWO:
        chosen.append(draw.choice(others))
    constraints, sentences = [], [draw.choice(TASKS).format(topic=topic)]
    for kind in chosen:
        parameters = PARAMETERS.get(kind, lambda draw: {})(draw)
        wording = draw.choice(CONSTRAINTS[kind].wordings)
        shown = {**parameters, "keys": " and ".join(f'"{key}"' for key in parameters.get("keys", ()))}
        sentences.append(wording.format(**shown))
        constraints.append({"kind": kind, **parameters})
    if "words" not in chosen:
        sentences.append(draw.choice(LEAST).format(min=LEAST_WORDS))
        constraints.append({"kind": "words", "min": LEAST_WORDS})
    return {"prompt": " ".join(sentences), "constraints": constraints}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/smollm2/prompts.py FOLDER")
    main(Path(sys.argv[1]))
