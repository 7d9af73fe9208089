"""Several judges behind one name. The runner asks the members one by one, so that each verdict is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from localdpo.judging.base import Judge, Question, Usage, Verdict


class Panel:
    """Base of the jury and of the constitution: who is asked, and how their verdicts become one."""

    name: str
    identity: Mapping[str, str]
    concurrency: int

    def members_for(self, question: Question) -> Sequence[Judge]:
        """The judges that this question goes to; the same ones each time for the same question."""
        raise NotImplementedError

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        """One verdict from those of `members_for(question)`, in their order."""
        raise NotImplementedError

    def ask(self, question: Question) -> Verdict:
        """Ask every member in turn. `run_questions` does not use this: it asks the members itself."""
        return self.combine([member.ask(question) for member in self.members_for(question)])

    def worst_case_usd(self, question: Question) -> float:
        """The sum over the members."""
        return sum(member.worst_case_usd(question) for member in self.members_for(question))


def leaves(judge: Judge, question: Question) -> list[Judge]:
    """The judges that are really asked, panels of panels taken apart."""
    if isinstance(judge, Panel):
        return [leaf for member in judge.members_for(question) for leaf in leaves(member, question)]
    return [judge]


def assemble(judge: Judge, question: Question, verdicts: Iterator[Verdict]) -> Verdict:
    """The verdict of `judge` from the verdicts of its `leaves`, taken in that order."""
    if isinstance(judge, Panel):
        members = judge.members_for(question)
        return judge.combine([assemble(member, question, verdicts) for member in members])
    return next(verdicts)


def add_usage(verdicts: Sequence[Verdict]) -> Usage:
    """What several verdicts cost together."""
    return Usage(
        input_tokens=sum(verdict.usage.input_tokens for verdict in verdicts),
        output_tokens=sum(verdict.usage.output_tokens for verdict in verdicts),
        cached_tokens=sum(verdict.usage.cached_tokens for verdict in verdicts),
        usd=sum(verdict.usage.usd for verdict in verdicts),
    )
