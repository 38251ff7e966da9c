"""minigpt generate: continue a prompt, show token probabilities, compare settings, chat, or serve."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated, Any

from minigpt_cli.commands.options import CheckpointOption, JsonFlag, OptionalRun, RunsDir, check_page, option, switch
from minigpt_cli.data.chat import TOKENS, check_unmarked, prompt_for, token_ids
from minigpt_cli.display import console
from minigpt_cli.display.generation import Setting, ShownToken, TextStreamer, print_probabilities, print_sweep
from minigpt_cli.errors import UsageError
from minigpt_cli.generation import samples
from minigpt_cli.generation.engine import GenerationRequest
from minigpt_cli.generation.sampling import Sampling, style, with_setting
from minigpt_cli.generation.streaming import TextStream, pieces_of
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.generation.open_run import LoadedModel

_SAMPLING, _VIEW, _OTHER, _MANY = "Sampling (applied in this order)", "What is shown", "Other ways to run", "Many prompts"


def generate(
    run: OptionalRun = None,
    prompt: Annotated[str, option("TEXT", "Text to continue; '-' reads it from stdin.", "--prompt", "-p")] = "",
    chat: Annotated[bool, switch("--chat", "The prompt is a question to a run trained on chats.")] = False,
    max_new_tokens: Annotated[int, option("N", "Tokens to write.", min=1, max=10_000_000)] = 500,
    num_samples: Annotated[int, option("N", "Continuations of the same prompt.", min=1, max=100_000)] = 1,
    stop: Annotated[list[str] | None, option("TEXT", "End before this text; repeatable.")] = None,
    ignore_eos: Annotated[bool, switch("--ignore-eos", "Go on where a document or an answer ends.")] = False,
    max_time: Annotated[float, option("SECONDS", "End a text after so long; 0: no limit.", min=0)] = 0.0,
    seed: Annotated[int | None, option("N", "Repeat a text exactly; default: random, and shown.", min=0)] = None,
    ckpt: CheckpointOption = None,
    style_name: Annotated[
        str, option("conservative|default|creative", "Temperature and top-k: 0.5, 10 | 0.9, 50 | 1.2, 100.", "--style")
    ] = "default",
    prompts: Annotated[str | None, option("FILE", "Continue every line of a text, or row of a .jsonl; '-': of stdin.", panel=_MANY)] = None,
    out: Annotated[Path | None, option("FILE", "Write these texts there (JSONL); the same command goes on.", panel=_MANY)] = None,
    greedy: Annotated[bool, switch("--greedy", "The most probable token.", panel=_SAMPLING)] = False,
    repetition_penalty: Annotated[float | None, option("X", "Divide logits of seen tokens; 1: off.", panel=_SAMPLING)] = None,
    temperature: Annotated[float | None, option("X", "Below 1 safer, above 1 wilder; 0: greedy. \\[default: 0.9]", panel=_SAMPLING)] = None,
    top_k: Annotated[int | None, option("N", "Only the N most probable tokens; 0: all. \\[default: 50]", panel=_SAMPLING)] = None,
    top_p: Annotated[float | None, option("P", "Only the fewest tokens that reach P together; 1: all.", panel=_SAMPLING)] = None,
    min_p: Annotated[float | None, option("P", "Only tokens at least P times as probable as the first; 0: all.", panel=_SAMPLING)] = None,
    probs: Annotated[bool, switch("--probs", "Colour tokens by probability.", panel=_VIEW)] = False,
    alternatives: Annotated[bool, switch("--alternatives", "The same, after a table of what else was likely.", panel=_VIEW)] = False,
    html: Annotated[Path | None, option("FILE", "Save that view as a page instead.", panel=_VIEW)] = None,
    sweep: Annotated[str | None, option("NAME=A,B,...", "One prompt under several settings, side by side.", panel=_VIEW)] = None,
    interactive: Annotated[bool, switch("--interactive", "A prompt loop; /help there lists its commands.", "-i", panel=_OTHER)] = False,
    serve: Annotated[
        bool, switch("--serve", "An OpenAI-compatible server with a page at /; of RUN alone if it is named.", panel=_OTHER)
    ] = False,
    host: Annotated[str, option("HOST", "Address to serve at; any but loopback needs --api-key.", panel=_OTHER)] = "127.0.0.1",
    port: Annotated[int, option("PORT", "0: any free one.", min=0, max=65535, panel=_OTHER)] = 8000,
    api_key: Annotated[
        str | None, option("KEY", "Serve only requests that send this key.", envvar="MINIGPT_API_KEY", show_envvar=True, panel=_OTHER)
    ] = None,
    engine: Annotated[
        str, option("auto|native|native-fp32|native-int8|torch", "How to decode; auto: the fastest with 16 bits or more.", panel=_OTHER)
    ] = "auto",
    runs_dir: RunsDir = None,
    json: JsonFlag = False,
) -> None:
    """\b
    Examples:
      minigpt generate                                 the newest run writes
      minigpt generate top -p "Once upon a"            the best run, your words
      minigpt generate modern-1@2000                   as it wrote at step 2,000
      minigpt generate --temperature 0.5 --top-k 10    safer
      minigpt generate --num-samples 4 --seed 1 --json   four texts for a script
      minigpt generate -p "To be" --stop . --probs     with probabilities
      minigpt generate --sweep temperature=0.3,0.7,1.5   settings side by side
      minigpt generate --chat -p "How are you?"        ask one trained on chats
      minigpt generate --prompts asks.txt --out texts.jsonl   many prompts
      minigpt generate -i                              a loop; --chat: to talk
      minigpt generate --serve                         a server with a page

    Streams the prompt and its continuation. The same seed gives the same text, however many samples are drawn.
    """
    from minigpt_cli.generation.open_run import open_model
    from minigpt_cli.generation.select_decoder import check_engine

    without_prompt = {"--interactive": interactive, "--serve": serve, "--prompts": prompts is not None}
    check_page(html)
    special = {
        "--probs, --alternatives or --html": probs or alternatives or html is not None,
        "--sweep": sweep is not None,
        **without_prompt,
    }
    _at_most_one({"--json": json, **special})
    _at_most_one({"--num-samples": num_samples > 1, **special})
    _at_most_one({"--chat": chat, "--sweep": sweep is not None, "--serve": serve})
    if out is not None and prompts is None:
        raise UsageError("--out is for the texts of --prompts FILE: redirect one text with > instead")
    _at_most_one({"--prompt": bool(prompt), **without_prompt})
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    sampling = sampling_of(style_name, greedy=greedy, **given)
    settings = None if sweep is None else _sweep_settings(sampling, sweep)
    check_engine(engine)
    store = RunStore(runs_dir)
    if serve:
        from minigpt_cli.commands.serve import serve as serve_runs

        return serve_runs(store, host=host, port=port, api_key=api_key, engine=engine, only=run, ckpt=ckpt)
    wanted = run or "latest"
    found = store.find(wanted)
    to_read = found.checkpoint_to_read(ckpt)
    if interactive:
        from minigpt_cli.commands.interactive import PromptLoop

        return PromptLoop(store, sampling, max_new_tokens, seed, stop or [], ckpt or "best", engine, chat).run(found)
    prompt = _read_stdin() if prompt == "-" else prompt
    loaded = open_model(found, to_read, engine)
    if prompts is not None:
        from minigpt_cli.commands.prompt_file import write_all

        ends = () if ignore_eos else TOKENS if chat else loaded.ends
        base = GenerationRequest((), sampling, max_new_tokens, stop=tuple(stop or ()), ends=ends, max_time_s=max_time)
        return write_all(loaded, prompts, out, base, seed=seed, chat=chat)
    seed = new_seed() if seed is None else seed
    asked, ends = question(loaded, prompt) if chat else (prompt, loaded.ends)
    ends = () if ignore_eos else ends
    request = GenerationRequest(loaded.prompt_ids(asked), sampling, max_new_tokens, num_samples, seed, tuple(stop or ()), ends, max_time)
    _print_notices(loaded, wanted, seed, sampling, top_k)
    prompt = f"{prompt}\n" if chat and not json else prompt
    if settings is not None:
        return _sweep(loaded, prompt, request, settings)
    if probs or alternatives or html is not None:
        return _probabilities(loaded, prompt, request, html, listed=alternatives)
    if json:
        return _json(loaded, prompt, request)
    return _stream(loaded, prompt, request)


def _at_most_one(flags: dict[str, bool]) -> None:
    given = [name for name, on in flags.items() if on]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} cannot be used together: choose one")


def sampling_of(style_name: str = "default", *, greedy: bool = False, **given: Any) -> Sampling:
    """A style with the settings that are `given`; None leaves one as it is. Raises UsageError."""
    if greedy:
        if given.get("temperature"):
            raise UsageError(f"--greedy means --temperature 0, but --temperature {given['temperature']:g} is given too: leave one out")
        given = {**given, "temperature": 0.0}
    return replace(style(style_name), **{name: value for name, value in given.items() if value is not None})


def question(loaded: LoadedModel, prompt: str) -> tuple[str, tuple[str, ...]]:
    """The prompt in the chat template, and what ends the answer. Raises UsageError for a run that was not trained on chats."""
    check_question(loaded, prompt)
    return prompt_for([("user", prompt)]), TOKENS


def check_question(loaded: LoadedModel, text: str) -> None:
    """Raise UsageError for a run that was not trained on chats, or a text with a mark of the template."""
    if token_ids(loaded.tokenizer) is None:
        raise UsageError(f"run {loaded.run!r} has not learned to chat: train it on a .jsonl of conversations, or leave out --chat")
    check_unmarked(text, "the prompt")


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read(1 << 24).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error


def new_seed() -> int:
    """A random seed."""
    return SystemRandom().randrange(1 << 31)


def _print_notices(loaded: LoadedModel, wanted: str, seed: int, sampling: Sampling, top_k: int | None) -> None:
    for notice in loaded.notices:
        console.warn(notice)
    if top_k is not None and top_k > loaded.tokenizer.vocab_size:
        console.notice(f"--top-k {top_k} is more than the {loaded.tokenizer.vocab_size} tokens of the vocabulary: using all")
    drawn = "" if sampling.temperature == 0 else f", seed {seed}"
    chosen = f" ({wanted})" if wanted != loaded.run else ""
    console.notice(f"{loaded.run}{chosen}, step {loaded.step}{drawn}")


def _stream(loaded: LoadedModel, prompt: str, request: GenerationRequest) -> None:
    out, last = TextStreamer(), -1
    try:
        for number, step in samples.in_order(loaded.steps(request), request.num_samples):
            if number != last:
                if number:
                    out.separator()
                out.prompt(prompt)
                last = number
            out.text(step.text)
    finally:
        out.end()


def _json(loaded: LoadedModel, prompt: str, request: GenerationRequest) -> None:
    watch = samples.Stopwatch()
    done = samples.collect(loaded.steps(replace(request, score=True), watch), request.num_samples)
    console.write_json(samples.as_json(loaded.run, prompt, done, watch, request.seed))


def _probabilities(loaded: LoadedModel, prompt: str, request: GenerationRequest, html: Path | None, *, listed: bool) -> None:
    """Show how probable each token was: on the page `html` if it is given, else on the terminal."""
    whole, pieces = TextStream(loaded.token_bytes), pieces_of(loaded.token_bytes)
    [sample] = samples.collect(loaded.steps(replace(request, alternatives=5)), 1)
    tokens = [
        ShownToken(pieces[token], whole.push(token), math.exp(-nats), [(pieces[i], p) for i, p in alternatives])
        for token, nats, alternatives in zip(sample.tokens, sample.nats, sample.alternatives, strict=True)
    ]
    if html is None:
        print_probabilities(prompt, tokens, listed=listed)
        return
    from minigpt_cli.display.pages.tokens import probabilities_page
    from minigpt_cli.storage.atomic_io import write_atomic

    facts = f"step {loaded.step}, {len(tokens)} tokens, {sample.nats_per_token or 0:.3f} nats per token, seed {request.seed}"
    write_atomic(html, probabilities_page(loaded.run, prompt, tokens, facts))
    console.notice(f"wrote {html}")


def _sweep_settings(sampling: Sampling, sweep: str) -> dict[str, Sampling]:
    """The settings that NAME=A,B,... names, by label. Raises UsageError."""
    name, _, values = sweep.partition("=")
    if not values:
        raise UsageError(f"--sweep {sweep!r} is not NAME=A,B,...: for example --sweep temperature=0.3,0.7,1.5")
    return {f"{name} {value}": with_setting(sampling, name, value) for value in values.split(",")}


def _sweep(loaded: LoadedModel, prompt: str, request: GenerationRequest, settings: dict[str, Sampling]) -> None:
    written = []
    for label, sampling in settings.items():
        [sample] = samples.collect(loaded.steps(replace(request, sampling=sampling, score=True)), 1)
        distinct = [samples.distinct(sample.text, n) for n in (1, 2, 3)]
        written.append(Setting(label, sample.text, distinct, sample.nats_per_char))
    print_sweep(prompt, written)
