"""minigpt runs export and import: formats of other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt_cli import registry
from minigpt_cli.commands.config_flags import with_settings
from minigpt_cli.commands.config_sources import resolve
from minigpt_cli.commands.init_from import open_model
from minigpt_cli.commands.options import CheckpointOption, JsonFlag, RunArgument, RunsDir, complete_tokenizer, option, switch
from minigpt_cli.commands.samples import generate_command
from minigpt_cli.display import console, waiting
from minigpt_cli.errors import UsageError
from minigpt_cli.escaping import one_line
from minigpt_cli.runstore.store import RunStore, check_name

if TYPE_CHECKING:
    from minigpt_cli.checkpoints import Loaded
    from minigpt_cli.interchange.huggingface import Exported
    from minigpt_cli.runstore.directory import Run
    from minigpt_cli.tokenization.contract import Tokenizer

_DEFAULT_DTYPE = {"hf": "f32", "gguf": "f16", "html": "auto"}


def export(
    run: RunArgument,
    out: Annotated[
        Path | None, option("PATH", "A new or empty folder to write; for html, onnx and notebook a file.", "--out", "-o")
    ] = None,
    push: Annotated[
        str | None,
        option("OWNER/NAME", "With hf: also to this repository of the Hugging Face hub, as you are logged in there; a new one is private."),
    ] = None,
    format: Annotated[
        str,
        option("hf|gguf|html|onnx|notebook", "For Hugging Face, llama.cpp and Ollama, a page that writes, onnxruntime, or Jupyter."),
    ] = "hf",
    dtype: Annotated[
        str | None,
        option(
            "TYPE",
            "hf: f32 (default), f16, bf16; gguf: f32, f16 (default), q8_0, q5_0, q4_0; html: f16, above 4 M parameters int8; onnx: f32.",
        ),
    ] = None,
    ckpt: CheckpointOption = None,
    runs_dir: RunsDir = None,
    json: JsonFlag = False,
) -> None:
    """\b
    Examples:
      minigpt runs export top --out hf-model           for transformers
      minigpt runs export top --format gguf --out gg   for llama.cpp and Ollama
      minigpt runs export modern-1@2000 --out early    a step that it keeps
      minigpt runs export top --format gguf --dtype q8_0 --out small
      minigpt runs export top --format html --out friend.html   a page that writes
      minigpt runs export top --format onnx --out friend.onnx   for onnxruntime
      minigpt runs export top --format notebook --out top.ipynb   for Jupyter
      minigpt runs export top --push me/bard           to the Hugging Face hub

    Writes a run as a folder that other programs open, with a model card; with html as one page that holds the model and writes in any
    browser, without a network (up to 32 M parameters); with onnx as one file, with inputs for the keys and values of earlier tokens; with
    notebook as one for Jupyter that opens the run where it is, draws its curves, writes, scores and compares. What the format cannot
    express is an error that names it, before anything is written.
    """
    registry.load("export format", format)  # before the run is looked for
    if out is None and push is None:
        raise UsageError("nothing says where to write: give --out PATH")
    if push is not None:
        _check_push(push, format)
    found = RunStore(runs_dir).find(run)
    ckpt = found.checkpoint_to_read(ckpt)
    with TemporaryDirectory(prefix="minigpt-") as temporary:
        loaded, exported = export_run(found, out or Path(temporary), format, dtype, ckpt, push)
    for notice in [*loaded.notices, *exported.notices]:
        console.notice(notice)
    if json:
        facts = {"run": found.name, "ckpt": ckpt, "step": loaded.step, "format": format, "architecture": exported.architecture}
        facts |= {"out": str(out) if out is not None else None, "files": exported.files}
        console.write_json(facts | ({"pushed_to": exported.address} if push is not None else {}))
        return
    files = f": {', '.join(exported.files)}" if len(exported.files) > 1 else ""
    place = " and ".join([str(place) for place in (out, exported.address) if place])
    console.write(one_line(f"{found.name} (step {loaded.step}) is in {place} as {exported.architecture}{files}"))


def _check_push(repo: str, format: str) -> None:
    """Raise UsageError, before any work, for an export that cannot be pushed."""
    from minigpt_cli.interchange import hub

    if format != "hf":
        raise UsageError(f"--push is for --format hf, not {format}")
    hub.check_push(repo)


def export_run(run: Run, out: Path, format: str, dtype: str | None, ckpt: str, push: str | None = None) -> tuple[Loaded, Exported]:
    """Write a run in the format of another program, and with `push` to that repository of the hub. Raises UsageError for what the format
    cannot express, before anything is written."""
    from minigpt_cli import checkpoints

    write, loaded = registry.load("export format", format), checkpoints.load(run, ckpt)
    dtype = dtype or _DEFAULT_DTYPE.get(format, "f32")
    if push is None:
        return loaded, write(loaded, out, dtype)
    from minigpt_cli.interchange import hub

    exported = write(loaded, out, dtype, push)
    waiting.show(f"pushing to {push}")
    return loaded, replace(exported, address=hub.push(out, push))


@with_settings(only=("model",))
def import_run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="X", help="A Hugging Face folder, hf:OWNER/NAME[@REVISION] of its hub, nanoGPT's ckpt.pt, a .pt or .safetensors, a run."
        ),
    ],
    name: Annotated[str | None, option("NAME", "The run's name; default: its architecture and a number.")] = None,
    tokenizer: Annotated[
        str | None, option("byte|gpt2|FILE", "Its tokenizer, if the source does not name one.", autocompletion=complete_tokenizer)
    ] = None,
    partial: Annotated[bool, switch("--partial", "Take the tensors that fit; the others start as in a new model.")] = False,
    runs_dir: RunsDir = None,
    json: JsonFlag = False,
    *,
    settings: dict[str, Any],
) -> None:
    """\b
    Examples:
      minigpt runs import ~/models/gpt2 --name gpt2   a Hugging Face folder
      minigpt runs import hf:openai-community/gpt2    from the Hugging Face hub
      minigpt runs import out-shakespeare-char        nanoGPT's, with meta.pkl
      minigpt runs import w.safetensors --arch classic --tokenizer gpt2

    Makes a run from the weights of another program: GPT-2, Llama, Qwen3, Mixtral, Qwen2-MoE, Qwen3-MoE, nanoGPT. Nothing in a file is
    executed; from the hub only safetensors, JSON and vocabularies are downloaded, and the run's record names the commit. Sizes come from
    the source if it names them; a smaller --block-size removes the learned positions beyond it.
    """
    if name is not None:
        check_name(name)
    from minigpt_cli.commands.provenance import new_record
    from minigpt_cli.interchange.importing import import_source
    from minigpt_cli.interchange.initialise import model_settings

    store = RunStore(runs_dir)
    found = open_model(source, store)
    config = resolve(settings, environment={}, base=(found.label, model_settings(found))).config
    found = replace(found, tokenizer=_named_tokenizer(tokenizer) or found.tokenizer)
    config = config.changed(data={"tokenizer": tokenizer or (found.tokenizer.name if found.tokenizer else "char")})
    run, report = import_source(store, found, config, new_record(name or "", preset=None), name=name, partial=partial)
    record = run.record
    if json:
        outcome = {"run": run.name, "kind": report.kind, "sha256": report.sha256, "arch": record.arch, "n_params": record.n_params}
        outcome |= {"vocab_size": record.vocab_size, "loaded": len(report.loaded), "missing": [n for n, _ in report.missing]}
        outcome |= {"unexpected": [n for n, _ in report.unexpected], "wrongly_shaped": [n for n, *_ in report.misshaped]}
        console.write_json(outcome | {"notes": report.notes})
        return
    from minigpt_cli.display.findings import print_tensor_report

    print_tensor_report(report)
    name = one_line(run.name)
    console.write(f"run     {name}: {record.arch}, {record.n_params:,} parameters, {record.vocab_size:,} tokens")
    console.write(f"next    {one_line(generate_command(run))}")


def _named_tokenizer(name: str | None) -> Tokenizer | None:
    """The tokenizer that --tokenizer names. Raises UsageError for one that is made from a text."""
    if name is None:
        return None
    from minigpt_cli.config import DataConfig
    from minigpt_cli.tokenization.contract import TrainingText
    from minigpt_cli.tokenization.pretrained import load_tokenizer

    if name in ("byte", "gpt2"):
        made: Tokenizer = registry.load("tokenizer", name).build(DataConfig(tokenizer=name), TrainingText.of(""))
        return made
    if name in registry.TOKENIZERS:
        raise UsageError(f"--tokenizer {name} is made from a text, and an import has none: give the tokenizer.json of the weights")
    return load_tokenizer(Path(name))
