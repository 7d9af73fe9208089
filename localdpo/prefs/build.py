"""`localdpo prefs build`: from prompts to preference pairs of a model's own answers.

What lies in the folder of a build:

    candidates.jsonl   every answer that was generated; see candidates.py
    verdicts.jsonl     every verdict that was given; see judging/journal.py
    train.jsonl        the pairs to train on, and valid.jsonl those to evaluate on, split by prompt
    report.json        what was kept and dropped, and why; see build_report.py

The first two only ever grow, and a build goes on where they end, however it ended: nothing that they hold is
generated or asked again. The others depend on them and on the options alone (no times), so a build that was
killed and run again gives the same files, to the byte, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from localdpo.answering.generator import OnAnswer
from localdpo.core.atomic import clean_leftovers, write_bytes, write_text
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.judging.budget import Budget
from localdpo.judging.journal import Journal
from localdpo.judging.retry import OnWait, Retry
from localdpo.judging.runner import Asking, OnVerdict, find_keys
from localdpo.prefs.build_plan import Plan
from localdpo.prefs.build_report import report_of
from localdpo.prefs.build_rows import HASH_DIGITS, Built, row_of
from localdpo.prefs.candidates import by_prompt, make_candidates
from localdpo.prefs.judging import Outcome, judge_all, questions_of_build
from localdpo.prefs.rewrite import as_line
from localdpo.prefs.selection import split_by_prompt
from localdpo.records.answers import AnswerRecord, AnswersWriter

TRAIN: Final = "train.jsonl"
VALID: Final = "valid.jsonl"
REPORT: Final = "report.json"


@dataclass(frozen=True)
class Callbacks:
    """What `run_build` calls while it works.

    `on_candidate`: for each answer, first those that were there already. `on_verdict`: for each verdict,
    those of the journal too. `on_judging`: once, with how many verdicts there will be at most. `on_wait`:
    seconds and reason before each wait, from any thread.
    """

    on_candidate: OnAnswer | None = None
    on_judging: Callable[[int], None] | None = None
    on_verdict: OnVerdict | None = None
    on_wait: OnWait | None = None


def run_build(
    plan: Plan,
    *,
    budget: Budget | None = None,
    retry: Retry | None = None,
    callbacks: Callbacks | None = None,
) -> dict[str, Any]:
    """Generate what is missing, ask what is missing, write pairs and report; the report's record.

    Raises UserError for a model, adapter or prompt that does not work, another process in the same folder, a
    full disk and a build without a pair; JudgeStopped when nothing more can be asked. The same call goes on
    where one of them ended it.
    """
    options = plan.options
    callbacks = callbacks or Callbacks()
    options.out.mkdir(parents=True, exist_ok=True)
    if not plan.candidates.exists():
        _require_own(options.out, {TRAIN: b"", VALID: b""})
    with AnswersWriter(plan.candidates, plan.header) as writer:
        clean_leftovers(options.out)
        if callbacks.on_candidate is not None:
            for record in list(writer.tail.records.values()):
                callbacks.on_candidate(record)
        if writer.tail.missing:
            find_keys(plan.judges.pairs, plan.judges.scores)
        make_candidates(
            options.source, plan.prompts, plan.drawing, plan.tokenizer, writer, callbacks.on_candidate
        )
        answers = by_prompt(writer.tail.records, len(plan.prompts), plan.drawing.judged)
        questions = list(questions_of_build(plan, answers))
        if callbacks.on_judging is not None:
            callbacks.on_judging(sum(len(asked) for _, asked in questions))
        # A lost verdict would be lost money.
        costs = any(judge.worst_case_usd(one) > 0 for judge, asked in questions for one in asked[:1])
        with Journal(plan.verdicts, sync=costs) as journal:
            asking = Asking(
                journal=journal,
                budget=budget or Budget(options.max_usd),
                retry=retry,
                concurrency=options.concurrency,
                on_verdict=callbacks.on_verdict,
                on_wait=callbacks.on_wait,
            )
            outcome = judge_all(plan, answers, asking)
        return _write(plan, answers, outcome)


def _write(plan: Plan, answers: Sequence[Mapping[str, AnswerRecord]], outcome: Outcome) -> dict[str, Any]:
    """Write the two files of pairs and, last, the report. Without a pair an earlier build's files stay."""
    options = plan.options
    built = outcome.built if options.keep is None else outcome.built[: options.keep]
    held = _held_out(plan, built)
    report = report_of(plan, answers, outcome, built, sum(held))
    rows = _rows(plan, answers, built)
    report["files"] = _written(options.out)
    if built:
        contents = {
            name: b"".join(as_line(row) for row, is_held in zip(rows, held, strict=True) if is_held == side)
            for name, side in ((TRAIN, False), (VALID, True))
        }
        _require_own(options.out, contents)
        report["files"] = {name: _digest(content) for name, content in contents.items() if content}
        for name, content in contents.items():
            if content:
                write_bytes(options.out / name, content)
            else:
                (options.out / name).unlink(missing_ok=True)
    write_text(options.out / REPORT, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    if not built:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in outcome.pairs.most_common())
        stays = f"; {TRAIN} in it is of an earlier build" if (options.out / TRAIN).exists() else ""
        prompts = counted(len(plan.prompts), "prompt")
        raise UserError(f"{options.out}: no pair was kept of {prompts} ({reasons}){stays}")
    return report


def _require_own(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Raise UserErrors for files of pairs that no build wrote as they are: replacing them would lose work.

    The report has the digests of those that the build before wrote; one that was killed ahead of its report
    wrote what is written now, unless its options were others.
    """
    written, errors = _written(folder), []
    for name, content in contents.items():
        path = folder / name
        if path.exists() and _digest(path.read_bytes()) not in (written.get(name), _digest(content)):
            errors.append(UserError(f"{path}: not as a build wrote it; move it away, and run this again"))
    if errors:
        raise UserErrors(errors)


def _written(folder: Path) -> dict[str, str]:
    """The digests of its files of pairs in the report of the build before; empty where it has none."""
    try:
        return dict(json.loads((folder / REPORT).read_bytes())["files"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _held_out(plan: Plan, built: Sequence[Built]) -> list[bool]:
    """For each pair, whether it goes into the file to evaluate on."""
    options = plan.options
    count = options.valid_count
    wanted = round(options.valid_fraction * len(built)) if count is None else count
    if built and wanted >= len(built):
        raise UserError(
            f"--valid-count {wanted}: only {len(built):,} pairs were kept, which leaves none to train on; "
            "give a smaller one (nothing is generated or asked again)"
        )
    return split_by_prompt([plan.prompts[one.pair.prompt].id for one in built], wanted, options.seed)


def _rows(
    plan: Plan, answers: Sequence[Mapping[str, AnswerRecord]], built: Sequence[Built]
) -> list[dict[str, Any]]:
    drawing, prints = plan.drawing, plan.prints
    temperatures = {name: drawing.temperature(name) for name in drawing.names}
    common = {
        "model": prints.model[:HASH_DIGITS],
        "adapter": prints.adapter and prints.adapter[:HASH_DIGITS],
        "template": prints.template[:HASH_DIGITS],
        "max_tokens": drawing.max_tokens,
        "seed": drawing.seed,
        "judge": plan.judges.name,
        "rubric": " and ".join(plan.judges.rubrics) or None,
    }
    return [
        row_of(one, plan.prompts[one.pair.prompt], answers[one.pair.prompt], temperatures, common)
        for one in built
    ]
