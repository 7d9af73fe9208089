"""A client of a server that sends the key back everywhere, with all logging on. See test_judge_secrets.py."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

from fake_judges import pairs, run_questions

from localdpo.judging.anthropic_batch import AnthropicBatchJudge
from localdpo.judging.base import JudgeStopped, both_orders
from localdpo.judging.registry import JudgeRequest, make_judge
from localdpo.judging.run import Journal, Retry


def main() -> None:
    """FOLDER PLAIN BATCH: asks the judges of the server at PLAIN, then the one of batches at BATCH."""
    folder, plain, batch = Path(sys.argv[1]), *sys.argv[2:]
    logging.basicConfig(level=logging.DEBUG, filename=folder / "all.log")
    logging.getLogger().addHandler(logging.StreamHandler())
    ask(folder / "0.jsonl", plain, "anthropic:claude-opus-5-5")
    ask(folder / "1.jsonl", plain, f"openai:{plain}/v1#local")
    ask(folder / "2.jsonl", batch, "anthropic:claude-opus-5-5", batch=True)


def ask(file: Path, url: str, spec: str, *, batch: bool = False) -> None:
    os.environ["ANTHROPIC_BASE_URL"] = url
    retry = Retry(tries=3, first=0.001, most=0.002)
    judge = make_judge(spec, JudgeRequest(batch=batch))
    if isinstance(judge, AnthropicBatchJudge):
        judge.poll = 0.01
    with Journal(file) as journal:
        for _ in range(8):
            try:
                verdicts = run_questions(
                    judge, both_orders(pairs(2)), journal, retry=retry, concurrency=1, on_wait=print
                )
                print(judge, vars(judge), verdicts)
            except JudgeStopped as error:
                print(error, repr(error))
                traceback.print_exc()
                # What an exception remembers is shown by some tools, however it was raised.
                print("remembered:", repr(error.__context__), repr(error.__cause__))


if __name__ == "__main__":
    main()
