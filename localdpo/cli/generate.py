"""`localdpo generate` and `localdpo serve`: what a run's model answers, here and to OpenAI clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from localdpo.cli import options as opt
from localdpo.core.errors import UserError
from localdpo.launch.explain import failure
from localdpo.out import note, result, say
from localdpo.records.rundir import find_run

DEFAULT_TOKENS: Final = 256


def generate(
    run: opt.RunArgument = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What to answer; repeatable.")
    ] = None,
    max_tokens: opt.MaxTokensOption = DEFAULT_TOKENS,
    temperature: opt.TemperatureOption = 0.0,
    seed: opt.SeedOption = 0,
    checkpoint: opt.CheckpointOption = None,
    as_json: opt.JsonOption = False,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Answer prompts with the trained model.

    They are rendered in the chat template that the run was trained in.
    """
    prompts = prompt or []
    if not prompts:
        raise UserError("generate: nothing to answer; give --prompt TEXT, once for each prompt")
    if not all(text.strip() for text in prompts):
        raise UserError("--prompt: expected a text, got an empty one")
    found = find_run(runs_dir, run)
    from localdpo.model.backend import prepare

    prepare(note)
    from localdpo.data.encode import encode_prompt
    from localdpo.interop.trained import open_trained
    from localdpo.model.generate import generate as answer

    trained = open_trained(found, checkpoint, note)
    data, base = trained.recipe.data, trained.as_trained()
    encoded = [
        encode_prompt(
            base.tokenizer._tokenizer, text, data.template, template_kwargs=data.chat_template_kwargs
        ).tolist()
        for text in prompts
    ]
    answers = answer(
        base.model, base.tokenizer, encoded, max_tokens=max_tokens, temperature=temperature, seed=seed
    )
    listed = [
        {"prompt": text, "answer": made.text, "tokens": len(made.tokens), "finished": made.finished}
        for text, made in zip(prompts, answers, strict=True)
    ]
    heads = [[f"> {text}"] if len(prompts) > 1 else [] for text in prompts]
    lines = [line for head, made in zip(heads, answers, strict=True) for line in (*head, made.text)]
    record = {"run": str(found.path), "adapter": str(trained.adapter), "answers": listed}
    result(record, lines, as_json=as_json)


def serve(
    run: opt.RunArgument = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on.")] = 8080,
    max_tokens: opt.MaxTokensOption = 512,
    temperature: opt.TemperatureOption = 0.0,
    checkpoint: opt.CheckpointOption = None,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Serve the trained model to clients of OpenAI's chat API.

    mlx_lm.server serves it, once a request has shown that the adapter answers.
    """
    found = find_run(runs_dir, run)
    from localdpo.model.backend import prepare

    prepare(note)
    from localdpo.interop.serve import Served, require_free, strongest_probe
    from localdpo.interop.trained import open_trained

    require_free(host, port)
    trained = open_trained(found, checkpoint, note)
    probe = strongest_probe(trained)
    served = Served(trained, host, port, ["--max-tokens", str(max_tokens), "--temp", str(temperature)])
    try:
        note(served.check(probe))
        where = (
            "chat/completions" if probe.is_chat else "completions (trained on text without a chat template)"
        )
        say(f"serving {found.name} at {served.url}/v1: {where}, model {found.name!r}; Ctrl-C ends it")
        code = served.wait()
    finally:
        served.close()
    raise UserError(f"mlx-lm's server {failure(code)}")
