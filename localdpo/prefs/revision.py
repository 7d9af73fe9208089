"""AI feedback by a constitution: the model criticises its answer by a principle, then writes it again.

After Constitutional AI (arXiv 2212.08073, section 3.1). The principle of a prompt is the one that a judge
with the same constitution is asked about.
"""

from __future__ import annotations

import hashlib
from typing import Final

from localdpo.data.render import side_messages
from localdpo.data.types import Message, Side
from localdpo.judging.constitution import Constitution, Principle

CRITIQUE: Final = "critique"
REVISION: Final = "revision"
_CRITIQUE: Final = (
    "Look at your last answer by this principle and by nothing else: {principle}\n"
    "Say in a few sentences where the answer falls short of it, or that it does not."
)
_REVISION: Final = (
    "Write that answer again, so that it keeps this principle: {principle}\n"
    "Mend what you found above and keep the rest. Reply with the answer alone."
)


def principle_of(constitution: Constitution, prompt_id: str) -> Principle:
    """The principle for a prompt: drawn by a hash of its id, as `ConstitutionJudge` does with "sample"."""
    drawn = hashlib.sha256(prompt_id.encode("utf-8", errors="replace")).digest()
    return constitution.principles[int.from_bytes(drawn[:8], "big") % len(constitution.principles)]


def critique_request(prompt: Side, answer: str, principle: Principle) -> list[Message]:
    """The conversation, the answer, and what asks for its critique."""
    asked = {"role": "user", "content": _CRITIQUE.format(principle=principle.text.strip())}
    return [*side_messages(prompt, "user"), {"role": "assistant", "content": answer}, asked]


def revision_request(prompt: Side, answer: str, principle: Principle, critique: str) -> list[Message]:
    """The conversation, the answer, its critique, and what asks for a better one."""
    asked = {"role": "user", "content": _REVISION.format(principle=principle.text.strip())}
    critical = {"role": "assistant", "content": critique}
    return [*critique_request(prompt, answer, principle), critical, asked]
