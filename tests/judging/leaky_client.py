"""A client of a server that sends the key back everywhere, with all logging on. See test_judge_secrets.py."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

from fake_judges import pairs, run_questions

from localdpo.judging.anthropic_batch import AnthropicBatchJudge
from localdpo.judging.base import JudgeStopped, both_orders
from localdpo.judging.registry import JudgeRequest, make_judge
from localdpo.judging.run import Journal, Retry


def main() -> None:
    folder, batch, specs = Path(sys.argv[1]), sys.argv[2] == "batch", sys.argv[3:]
    logging.basicConfig(level=logging.DEBUG, filename=folder / "all.log")
    logging.getLogger().addHandler(logging.StreamHandler())
    retry = Retry(tries=3, first=0.001, most=0.002)
    for number, spec in enumerate(specs):
        judge = make_judge(spec, JudgeRequest(batch=batch))
        if isinstance(judge, AnthropicBatchJudge):
            judge.poll = 0.01
        with Journal(folder / f"{number}.jsonl") as journal:
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
