"""`localdpo prefs build`: from prompts to preference pairs of a model's own answers.

The folder of a build holds:

    candidates.jsonl   every answer that was generated; see candidates.py
    verdicts.jsonl     every verdict that was given; see records/verdicts.py
    train.jsonl        the pairs to train on, and valid.jsonl those to evaluate on, split by prompt
    report.json        what was kept and dropped, and why; see build_report.py

The first two only ever grow, and a build resumes where they end, however it ended: nothing that they hold is
generated or asked again. The others depend on them and on the options alone (no times), so a build that was
killed and run again writes the same files, to the byte, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from localdpo.core.atomic import clean_leftovers, make_folder, write_bytes, write_text
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.judging.cost import Budget
from localdpo.judging.registry import Hooks, judge_session
from localdpo.prefs.build_plan import BuildPlan
from localdpo.prefs.build_report import report_of, rows_of_build
from localdpo.prefs.candidates import by_prompt, make_candidates
from localdpo.prefs.rewrite import as_line, split_by_prompt
from localdpo.prefs.selection import BuildOutcome, CandidateJudging, Candidates
from localdpo.records.answers import AnswersWriter

TRAIN: Final = "train.jsonl"
VALID: Final = "valid.jsonl"
REPORT: Final = "report.json"


class NoPairs(UserError):
    """A build that kept no pair: of how many prompts, and what became of them."""


def run_build(plan: BuildPlan, *, budget: Budget | None = None, hooks: Hooks | None = None) -> dict[str, Any]:
    """Generate what is missing, ask what is missing, write pairs and report; the report's record.

    Raises UserError for a model, adapter or prompt that does not work, another process in the same folder and
    a full disk; NoPairs where no pair is kept; JudgeStopped when nothing more can be asked. Call it again to
    resume.
    """
    options, hooks = plan.options, hooks or Hooks()
    make_folder(options.out)
    _require_own(options.out, {} if plan.candidates.exists() else {TRAIN: b"", VALID: b""})
    with AnswersWriter(plan.candidates, plan.header) as writer:
        clean_leftovers(options.out)
        if hooks.on_answer is not None:
            for record in list(writer.tail.records.values()):
                hooks.on_answer(record)
        if writer.tail.missing:
            plan.judges.find_keys()
        make_candidates(options.source, plan.prompts, plan.sampling, plan.tokenizer, writer, hooks.on_answer)
        answers = by_prompt(writer.tail.records, len(plan.prompts), plan.sampling.judged)
        judging = CandidateJudging(plan, answers)
        questions = judging.questions()
        with judge_session(options, plan.verdicts, questions, budget=budget, hooks=hooks) as session:
            outcome = judging.run(session)
        return _write(plan, answers, outcome)


def _write(plan: BuildPlan, answers: Candidates, outcome: BuildOutcome) -> dict[str, Any]:
    """Write the two files of pairs and, last, the report. Without a pair an earlier build's files stay."""
    options = plan.options
    built = outcome.built if options.keep is None else outcome.built[: options.keep]
    share = round(options.valid_fraction * len(built))
    wanted = share if options.valid_count is None else options.valid_count
    if built and wanted >= len(built):
        raise UserError(
            f"--valid-count {wanted}: the build kept only {counted(len(built), 'pair')}, which leaves none "
            "to train on; give a smaller one (nothing is generated or asked again)"
        )
    held = split_by_prompt([plan.prompts[pair.prompt].id for pair in built], wanted, options.seed)
    report = report_of(plan, answers, outcome, built, sum(held))
    rows = rows_of_build(plan, answers, built)
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
        reasons = _reasons(outcome.pairs)
        if outcome.candidates:
            reasons += f"; answers that were left out: {_reasons(outcome.candidates)}"
        stays = f"; {TRAIN} in it is of an earlier build" if (options.out / TRAIN).exists() else ""
        prompts = counted(len(plan.prompts), "prompt")
        raise NoPairs(f"{options.out}: no pair was kept of {prompts} ({reasons}){stays}")
    return report


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common())


def _require_own(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Raise UserErrors for files that no build wrote as they are: replacing them would lose work.

    The report has the digests of those that the build before wrote; one that was killed ahead of its report
    wrote what is written now, unless its options were others.
    """
    written, errors = _written(folder), []
    for name, content in contents.items():
        path = folder / name
        if path.exists() and _digest(path.read_bytes()) not in (written.get(name), _digest(content)):
            errors.append(_not_own(path))
    if errors:
        raise UserErrors(errors)


def _written(folder: Path) -> dict[str, str]:
    """The digests of its files of pairs in the report of the build before; empty without a report.

    Raises UserError for a report that no build wrote.
    """
    try:
        return dict(json.loads((folder / REPORT).read_bytes())["files"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_own(folder / REPORT) from error


def _not_own(path: Path) -> UserError:
    return UserError(f"{path}: not as a build wrote it; move it away, and run this again")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
