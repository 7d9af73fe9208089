"""Conversations with the models of a run, which share one load of the base.

All models are asked the same questions, and each goes on with its own answers. A model that is not shown
answers what it has missed when it is shown.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from localdpo.answering.contestants import Contestants, contestants
from localdpo.answering.generator import digest
from localdpo.core.errors import UserError
from localdpo.data.encode import encode_prompt
from localdpo.data.render import Renderer
from localdpo.data.types import Message
from localdpo.model.backend import prepare
from localdpo.model.generate import Memory, SampledAnswer, stream
from localdpo.model.load import load_base
from localdpo.recipe.load import load_recipe
from localdpo.records.answers import Sampling
from localdpo.records.checkpoints import Note
from localdpo.records.rundir import RunDir

ALL: Final = "all"


class Conversation:
    """What was asked and answered; it loads no model.

    Attributes:
        models: names of the run's models and what to call them: base, sft (if the run had a start), dpo, ...
        shown: names of those that answer now.
        questions: of the person, in order.
        answers: of each model, by its name, to the first questions; the last may be unfinished.
    """

    def __init__(self, run: RunDir, *, system: str | None, sampling: Sampling, note: Note) -> None:
        self.run, self.system, self.sampling = run, system, sampling
        self.contestants = contestants(run, note=note)
        self.models = {model.name: model.label for model in self.contestants}
        self.questions: list[str] = []
        self.answers: dict[str, list[SampledAnswer]] = {}
        self.shown = [self.contestants[-1].name]
        self.new()

    def new(self) -> None:
        self.questions, self.answers = [], {name: [] for name in self.models}

    @property
    def choices(self) -> list[str]:
        """Who may answer: each model, or all."""
        return [*self.models, ALL]

    @property
    def commands(self) -> str:
        """The lines that are no questions."""
        return ", ".join(f"/{name}" for name in ["new", *self.choices])

    @property
    def choice(self) -> str:
        """Who answers now."""
        return self.shown[0] if len(self.shown) == 1 else ALL

    def choose(self, name: str) -> None:
        """Show one model, or ALL. Raises UserError for another name."""
        if name not in self.choices:
            raise UserError(f"--model {name}: expected one of {', '.join(self.choices)}")
        self.shown = [*self.models] if name == ALL else [name]

    def take(self, words: str) -> bool:
        """Take a line of the person: /new, /NAME of who answers, or a question. Whether it needs answers.

        A question that begins with a slash has two. Raises UserError for another command.
        """
        if words == "/new":
            self.new()
            return False
        if words.startswith("/") and words[1:] in self.choices:
            self.choose(words[1:])
        elif words.startswith("/") and not words.startswith("//"):
            raise UserError(
                f"{words.split()[0]}: no such command; expected {self.commands}; begin a question with // to "
                "ask it with a slash"
            )
        else:
            self.questions.append(words[1:] if words.startswith("//") else words)
        return True

    def missing(self) -> str | None:
        """The next of the shown models that has a question to answer."""
        waiting = [name for name in self.shown if len(self.answers[name]) < len(self.questions)]
        return min(waiting, key=lambda name: len(self.answers[name]), default=None)

    def messages(self, name: str) -> list[Message]:
        """What a model answers next: the questions so far, and its own answers between them."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for question, answer in zip(self.questions, self.answers[name], strict=False):
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer.text},
            ]
        return [*messages, {"role": "user", "content": self.questions[len(self.answers[name])]}]


class Speakers:
    """The models of a conversation, loaded. Everything with them happens in one thread.

    Raises UserError for a model or an adapter that cannot be loaded.
    """

    def __init__(self, conversation: Conversation) -> None:
        prepare()
        self._conversation = conversation
        recipe = load_recipe(conversation.run.recipe)
        self._data = recipe.data
        self._base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
        self._models = Contestants(self._base, conversation.contestants)
        self._is_chat = Renderer(self._base.tokenizer._tokenizer, recipe.data.template).chat
        # A turn of a conversation is read once.
        self._memories = {model.name: Memory() for model in conversation.contestants}

    def answer(self, name: str) -> Generator[SampledAnswer]:
        """A model's answer to the question that it has not answered yet, after each token.

        What is drawn goes into the conversation. Close the iterator to stop early; what was drawn by then
        stays. Raises UserError where the chat template refuses the conversation.
        """
        talk, sampling = self._conversation, self._conversation.sampling
        messages, answers = talk.messages(name), talk.answers[name]
        ids = encode_prompt(
            self._base.tokenizer._tokenizer,
            messages if self._is_chat else "".join(message["content"] for message in messages),
            self._data.template,
            template_kwargs=self._data.chat_template_kwargs,
        )
        place = len(answers)
        # Every model draws its answer to a question with the same noise.
        seed = int(digest([sampling.seed, place])[:16], 16)
        with self._models.use(name):
            for answer in stream(
                self._base.model,
                self._base.tokenizer,
                ids.tolist(),
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=seed,
                memory=self._memories[name],
            ):
                answers[place:] = [answer]
                yield answer
