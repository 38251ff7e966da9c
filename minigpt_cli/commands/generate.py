"""minigpt generate: continue a prompt, show how sure the model was, compare settings, chat at a prompt, or serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt_cli.commands.options import CheckpointOption, JsonFlag, OptionalRun, RunsDir
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.generation.sampling import Sampling, style, with_setting

if TYPE_CHECKING:
    from minigpt_cli.generation.engine import Request
    from minigpt_cli.generation.open_run import LoadedModel

_SAMPLING, _VIEW, _OTHER = "Sampling (applied in this order)", "What is shown", "Other ways to run"


def generate(
    run: OptionalRun = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="Text to continue; '-' reads it from stdin.")] = "",
    chat: Annotated[bool, typer.Option("--chat", metavar="", help="The prompt is a question to a run trained on chats.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10_000_000, metavar="N", help="Tokens to write.")] = 500,
    num_samples: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Continuations of the same prompt.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.", show_default=False)] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", metavar="", help="Go on where a document or an answer ends.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Repeat a text exactly; default: drawn anew and shown.", show_default=False)
    ] = None,
    ckpt: CheckpointOption = "best",
    style_name: Annotated[
        str, typer.Option("--style", metavar="conservative|default|creative", help="Temperature and top-k: 0.5, 10 | 0.9, 50 | 1.2, 100.")
    ] = "default",
    greedy: Annotated[bool, typer.Option("--greedy", metavar="", help="The most probable token.", rich_help_panel=_SAMPLING)] = False,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Divide logits of seen tokens; 1: off.", show_default=False, rich_help_panel=_SAMPLING)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="Below 1 safer, above 1 wilder; 0: greedy. [default: 0.9]", show_default=False,
                                   rich_help_panel=_SAMPLING)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Only the N most probable tokens; 0: all. [default: 50]", show_default=False,
                                 rich_help_panel=_SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Only the fewest tokens that reach P together; 1: all.", show_default=False,
                                   rich_help_panel=_SAMPLING)
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(metavar="P", help="Only tokens at least P times as probable as the first; 0: all.", show_default=False,
                                   rich_help_panel=_SAMPLING)
    ] = None,
    probs: Annotated[
        bool, typer.Option("--probs", metavar="", help="Colour tokens by probability and list the alternatives.", rich_help_panel=_VIEW)
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save that view as a page of its own.", show_default=False, rich_help_panel=_VIEW)
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="NAME=A,B,...", help="One prompt under several settings, side by side.", show_default=False,
                                 rich_help_panel=_VIEW)
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", metavar="", help="A prompt loop; /help there lists its commands.", rich_help_panel=_OTHER)
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", metavar="", help="An OpenAI-compatible server with a page at /.", rich_help_panel=_OTHER)
    ] = False,
    host: Annotated[str, typer.Option(metavar="HOST", help="Where to serve; beyond loopback needs --api-key.", rich_help_panel=_OTHER)] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0: any free one.", rich_help_panel=_OTHER)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Serve only to those who send it.", envvar="MINIGPT_API_KEY", show_default=False,
                                 show_envvar=True, rich_help_panel=_OTHER)
    ] = None,
    engine: Annotated[str, typer.Option(metavar="auto|native|native-fp32|torch", help="How to decode; auto: the fastest there is.",
                                        rich_help_panel=_OTHER)] = "auto",
    runs_dir: RunsDir = None,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """\b
    Examples:
      minigpt generate                                 let the newest run write
      minigpt generate top -p "Once upon a"            the best run, your words
      minigpt generate --temperature 0.5 --top-k 10    safer
      minigpt generate --num-samples 4 --seed 1 --json   four texts for a script
      minigpt generate -p "To be" --stop . --probs     and how sure the model was
      minigpt generate --sweep temperature=0.3,0.7,1.5   settings side by side
      minigpt generate --chat -p "How are you?"        ask one trained on chats
      minigpt generate -i                              a prompt loop
      minigpt generate --serve                         a server with a page

    Streams the prompt and its continuation. The same seed gives the same text, however many samples are drawn.
    """
    from minigpt_cli.generation.select_decoder import check_engine
    from minigpt_cli.runstore.store import RunStore

    rooms = {"--interactive": interactive, "--serve": serve}
    views = {"--probs or --html": probs or html is not None, "--sweep": sweep is not None, **rooms}
    _one_mode({"--json": json, **views})
    _one_mode({"--num-samples": num_samples > 1, **views})
    _one_mode({"--chat": chat, "--sweep": sweep is not None, **rooms})
    _one_mode({"--prompt": bool(prompt), **rooms})
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    sampling = _sampling(style_name, greedy, given)
    settings = None if sweep is None else _settings(sampling, sweep)
    check_engine(engine)
    store = RunStore(runs_dir)
    if serve:
        from minigpt_cli.commands.serve import serve as serve_runs

        return serve_runs(store, host=host, port=port, api_key=api_key, engine=engine, first=run, ckpt=ckpt)
    wanted = run or "latest"
    found = store.find(wanted)
    ckpt = found.checkpoint or ckpt
    if interactive:
        from minigpt_cli.commands.interactive import loop

        return loop(store, found, sampling, max_new_tokens=max_new_tokens, ckpt=ckpt, engine=engine, seed=seed, stop=stop or [])
    from minigpt_cli.generation.open_run import open_model

    prompt = _read_stdin() if prompt == "-" else prompt
    writer = open_model(found, ckpt, engine)
    seed = _new_seed() if seed is None else seed
    asked, stop = question(writer, prompt, stop or []) if chat else (prompt, stop or [])
    stop = [*stop, *(() if ignore_eos else writer.ends)]
    request = _request(writer.prompt_ids(asked), sampling, max_new_tokens, num_samples, seed, stop)
    _say_what(writer, wanted, seed, sampling, top_k)
    prompt = f"{prompt}\n" if chat and not json else prompt
    if settings is not None:
        return _sweep(writer, prompt, request, settings)
    if probs or html is not None:
        return _probabilities(writer, prompt, request, show=probs or html is None, html=html)
    if json:
        return _json(writer, prompt, request)
    return _stream(writer, prompt, request)


def _one_mode(modes: dict[str, bool]) -> None:
    chosen = [name for name, on in modes.items() if on]
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0]} and {chosen[1]} cannot be used together: choose one")


def _sampling(style_name: str, greedy: bool, given: dict[str, Any]) -> Sampling:
    base = style(style_name)
    if greedy:
        if given["temperature"]:
            raise UsageError(f"--greedy is --temperature 0, and --temperature {given['temperature']:g} was given too: leave one out")
        given = {**given, "temperature": 0.0}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def _request(ids: list[int], sampling: Sampling, max_new_tokens: int, num_samples: int, seed: int, stop: list[str]) -> Request:
    from minigpt_cli.generation.engine import Request

    return Request(ids, sampling, max_new_tokens, num_samples, seed, tuple(stop))


def question(writer: LoadedModel, prompt: str, stop: list[str]) -> tuple[str, list[str]]:
    """The prompt in the template of conversations, and where the answer ends. Raises UsageError for a run that knows no such template."""
    from minigpt_cli.data.chat import TOKENS, prompt_for, token_ids

    if token_ids(writer.tokenizer) is None:
        raise UsageError(f"run {writer.run!r} has not learned to chat: train it on a .jsonl of conversations, or leave out --chat")
    if mark := next((token for token in TOKENS if token in prompt), None):
        raise UsageError(f"the prompt holds {mark}, which is reserved for the template of conversations")
    return prompt_for([("user", prompt)]), [*stop, *TOKENS]


def _read_stdin() -> str:
    import sys

    try:
        return sys.stdin.buffer.read(1 << 24).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error


def _new_seed() -> int:
    from random import SystemRandom

    return SystemRandom().randrange(1 << 31)


def _say_what(writer: LoadedModel, wanted: str, seed: int, sampling: Sampling, top_k: int | None) -> None:
    for notice in writer.notices:
        console.warn(notice)
    if top_k is not None and top_k > writer.tokenizer.vocab_size:
        console.notice(f"--top-k {top_k} is more than the {writer.tokenizer.vocab_size} tokens there are: using all")
    drawn = "" if sampling.temperature == 0 else f", seed {seed}"
    chosen = f" ({wanted})" if wanted != writer.run else ""
    console.notice(f"{writer.run}{chosen}, step {writer.step}{drawn}")


def _engine(writer: LoadedModel, request: Request) -> Any:
    from minigpt_cli.generation.engine import Engine

    return Engine(writer.decoder(request.num_samples), writer.token_bytes)


def _stream(writer: LoadedModel, prompt: str, request: Request) -> None:
    from minigpt_cli.display.generation import TextStreamer
    from minigpt_cli.generation import samples

    out, last = TextStreamer(), -1
    try:
        for number, step in samples.in_order(samples.run(_engine(writer, request), request), request.num_samples):
            if number != last:
                if number:
                    out.separator()
                out.prompt(prompt)
                last = number
            out.text(step.text)
    finally:
        out.end()


def _json(writer: LoadedModel, prompt: str, request: Request) -> None:
    from minigpt_cli.generation import samples

    request, watch = replace(request, score=True), samples.Stopwatch()
    done = samples.collect(samples.run(_engine(writer, request), request, watch), request.num_samples)
    console.write_json(samples.as_json(writer.run, prompt, done, watch, request.seed))


def _probabilities(writer: LoadedModel, prompt: str, request: Request, *, show: bool, html: Path | None) -> None:
    import math

    from minigpt_cli.display.generation import ShownToken, print_probabilities
    from minigpt_cli.display.pages.tokens import probabilities_page
    from minigpt_cli.generation import samples
    from minigpt_cli.generation.streaming import TextStream, pieces_of
    from minigpt_cli.storage.atomic_io import write_atomic

    request, whole = replace(request, alternatives=5), TextStream(writer.token_bytes)
    sample = samples.collect(samples.run(_engine(writer, request), request), 1)[0]
    pieces = pieces_of(writer.token_bytes)
    tokens = [
        ShownToken(pieces[token], whole.push(token), math.exp(-nats), [(pieces[i], p) for i, p in alternatives])
        for token, nats, alternatives in zip(sample.tokens, sample.nats, sample.alternatives, strict=True)
    ]
    if show:
        print_probabilities(prompt, tokens)
    if html is not None:
        facts = f"step {writer.step}, {len(tokens)} tokens, {sample.nats_per_token or 0:.3f} nats per token, seed {request.seed}"
        write_atomic(html, probabilities_page(writer.run, prompt, tokens, facts))
        console.notice(f"wrote {html}")


def _settings(sampling: Sampling, sweep: str) -> dict[str, Sampling]:
    """The settings that NAME=A,B,... names, by label. Raises UsageError."""
    name, _, values = sweep.partition("=")
    if not values:
        raise UsageError(f"--sweep {sweep!r} is not NAME=A,B,...: for example --sweep temperature=0.3,0.7,1.5")
    return {f"{name} {value}": with_setting(sampling, name, value) for value in values.split(",")}


def _sweep(writer: LoadedModel, prompt: str, request: Request, settings: dict[str, Sampling]) -> None:
    from minigpt_cli.display.generation import Setting, print_sweep
    from minigpt_cli.generation import samples

    written = []
    for label, sampling in settings.items():
        one = replace(request, sampling=sampling, score=True)
        sample = samples.collect(samples.run(_engine(writer, one), one), 1)[0]
        distinct = [samples.distinct(sample.text, n) for n in (1, 2, 3)]
        written.append(Setting(label, sample.text, distinct, sample.nats_per_char))
    print_sweep(prompt, written)
