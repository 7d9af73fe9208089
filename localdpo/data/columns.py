"""What the columns of a row are for: which may stand beside any format, and which nobody has to read."""

from __future__ import annotations

import re
from typing import Final

OPTIONS: Final = ("tools", "chat_template_kwargs")
SYSTEM: Final = ("system", "system_prompt")
MEDIA: Final = {
    **dict.fromkeys(
        ("image", "images", "img", "image_url", "image_urls", "image_path", "image_paths"), "pictures"
    ),
    **dict.fromkeys(("video", "videos", "video_url"), "videos"),
    **dict.fromkeys(("audio", "audios", "audio_url"), "sound"),
}
COMMON: Final = frozenset((*OPTIONS, *SYSTEM, *MEDIA))
"""Read beside every format that has a prompt."""
PROMPTS: Final = frozenset(
    (
        *("prompt", "instruction", "question", "query", "input", "user", "history", "context"),
        *("messages", "conversation", "conversations"),
    )
)
"""Columns that hold a prompt where they stand; two of them must not say different things."""

_RECORDS = frozenset(
    (
        *("id", "qid", "idx", "index", "row", "uuid", "guid", "hash", "key", "prompt_id", "rank", "turns"),
        *(
            "source",
            "sources",
            "dataset",
            "data_source",
            "origin",
            "subset",
            "split",
            "config",
            "url",
            "license",
        ),
        *("category", "categories", "topic", "topics", "tag", "tags", "domain", "task", "type", "difficulty"),
        *(
            "lang",
            "language",
            "date",
            "time",
            "timestamp",
            "created",
            "created_at",
            "updated_at",
            "created_utc",
        ),
        *("author", "annotator", "annotators", "worker", "model", "models", "generator", "judge"),
        *(
            "score",
            "scores",
            "rating",
            "ratings",
            "margin",
            "label",
            "labels",
            "votes",
            "agreement",
            "strength",
        ),
        *("helpfulness", "correctness", "coherence", "complexity", "verbosity", "honesty", "truthfulness"),
        *("instruction_following", "preference", "preference_strength", "overall_preference"),
        *("facts", "provenance", "meta", "metadata", "extra_info", "tokens"),
    )
)
_RECORD_LIKE = re.compile(
    r"_.*|(score|rating|num|n|is|has)[_-].*"
    r"|.*[_-](ids?|hash|scores?|ratings?|models?|policy|tokens|length|source|url|date|index|count|rank|at)"
)


def keeps_records(name: str) -> bool:
    """Whether a column is a record of where a row comes from or how it was judged: an id, a score, a date."""
    return name in _RECORDS or bool(_RECORD_LIKE.fullmatch(name))
