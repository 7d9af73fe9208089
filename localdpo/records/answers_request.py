"""What to ask a run's models, as the process that generates is told: JSON on its command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localdpo.records.answers import Sampling

# The process prints `answers PATH` as soon as it knows the file, and a line of this kind for each warning.
ANNOUNCEMENT = "answers "
NOTE = "note: "


@dataclass(frozen=True)
class AnswersRequest:
    """Prompts, models and sampling.

    Attributes:
        run: the run's folder.
        prompts: file or name of a data source; None for the run's held-out prompts, unless texts are given.
        texts: prompts as text, asked first.
        limit: at most this many prompts of the source; None for all.
        with_runs: folders of other runs whose trained adapters answer too.
    """

    run: Path
    prompts: str | None = None
    texts: tuple[str, ...] = ()
    limit: int | None = 32
    with_runs: tuple[Path, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def to_json(self) -> str:
        """The request as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> AnswersRequest:
        """What `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        entry = json.loads(text)
        return cls(
            run=Path(entry["run"]),
            prompts=entry["prompts"],
            texts=tuple(entry["texts"]),
            limit=entry["limit"],
            with_runs=tuple(Path(path) for path in entry["with_runs"]),
            sampling=Sampling(**entry["sampling"]),
        )
