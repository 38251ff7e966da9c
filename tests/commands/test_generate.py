"""minigpt generate as people type it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from minigpt_cli.generation.decoders.c import available
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.records import FileRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io, native_build

pytestmark = pytest.mark.usefixtures("trained")


def test_streams_prompt_and_continuation_and_names_run_and_seed_on_stderr(cli: Any) -> None:
    done = cli("generate", "--prompt", "To be", "--max-new-tokens", "20", "--seed", "3")
    assert done.code == 0
    assert done.out.startswith("To be")
    assert len(done.out.removesuffix("\n")) == 25
    assert done.err.split("\n")[0].startswith("first (latest), step ")
    assert "seed 3" in done.err


def test_the_same_seed_gives_the_same_text_and_another_run_of_samples_too(cli: Any) -> None:
    one = cli("generate", "first", "--seed", "1", "--max-new-tokens", "30").out
    assert cli("generate", "first", "--seed", "1", "--max-new-tokens", "30").out == one
    many = cli("generate", "first", "--seed", "1", "--max-new-tokens", "30", "--num-samples", "3").out
    assert many.split("---------------\n")[0] == one
    assert cli("generate", "first", "--seed", "2", "--max-new-tokens", "30").out != one


def test_json_is_one_document_with_the_continuation_alone(cli: Any) -> None:
    done = cli("generate", "--json", "-p", "To be", "--num-samples", "2", "--seed", "1", "--max-new-tokens", "12")
    document = done.json
    assert {"run", "prompt", "samples", "tokens_per_s"} <= document.keys()
    assert (document["run"], document["prompt"], len(document["samples"])) == ("first", "To be", 2)
    for sample in document["samples"]:
        assert sample.keys() == {"text", "n_tokens", "stop_reason", "nats_per_token"}
        assert (len(sample["text"]), sample["n_tokens"], sample["stop_reason"]) == (12, 12, "length")
        assert 0 < sample["nats_per_token"] < 20
    assert cli("generate", "-p", "To be", "--seed", "1", "--max-new-tokens", "12").out == "To be" + document["samples"][0]["text"] + "\n"


def test_stop_strings_are_repeatable_and_left_out(cli: Any) -> None:
    free = cli("generate", "--json", "--seed", "5", "--max-new-tokens", "60").json["samples"][0]["text"]
    late, early = free[40:43], free[10:13]
    sample = cli("generate", "--json", "--seed", "5", "--max-new-tokens", "60", "--stop", late, "--stop", early).json["samples"][0]
    assert sample["stop_reason"] == "stop"
    assert sample["text"] == free[: min(free.index(late), free.index(early))]


def test_greedy_is_temperature_zero(cli: Any) -> None:
    greedy = cli("generate", "--greedy", "--max-new-tokens", "20")
    assert greedy.out == cli("generate", "--temperature", "0", "--max-new-tokens", "20").out
    assert "seed" not in greedy.err
    assert cli("generate", "--greedy", "--temperature", "0.5").code == 2


def test_a_prompt_from_stdin(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin(io.StringIO):
        buffer = io.BytesIO(b"To be")

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert cli("generate", "--prompt", "-", "--max-new-tokens", "3", "--seed", "1").out.startswith("To be")
    Stdin.buffer = io.BytesIO(b"To \xff")
    done = cli("generate", "--prompt", "-")
    assert (done.code, done.out) == (2, "")
    assert "byte 3" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--top-p", "0"], "--top-p"),
        (["--top-k", "-3"], "--top-k"),
        (["--min-p", "2"], "--min-p"),
        (["--repetition-penalty", "0"], "--repetition-penalty"),
        (["--prompt", "To bé €"], "'é' (U+00E9) '€' (U+20AC)"),
        (["--prompt", "a\udcff"], "UTF-8"),
        (["--max-new-tokens", "0"], "max-new-tokens"),
        (["--style", "wild"], "unknown style 'wild'"),
        (["--ckpt", "middle"], "middle"),
        (["--engine", "numpy"], "unknown engine 'numpy': known: auto, native, native-fp32, native-int8, torch"),
        (["--sweep", "temperature"], "NAME=A,B"),
        (["--sweep", "warmth=1,2"], "unknown sampling setting"),
        (["--sweep", "top_k=1,x"], "not a whole number"),
        (["--json", "--probs"], "cannot be used together"),
        (["-i", "--probs"], "cannot be used together"),
        (["--serve", "-p", "To"], "cannot be used together"),
        (["--num-samples", "2", "--sweep", "top_k=1,2"], "cannot be used together"),
        (["nobody"], "unknown run 'nobody'"),
        (["--serve", "--host", "0.0.0.0"], "--api-key"),
        (["--serve", "--api-key", " "], "--api-key"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli: Any, arguments: list[str], message: str) -> None:
    done = cli("generate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_top_k_above_the_vocabulary_is_clipped_with_a_notice(cli: Any) -> None:
    done = cli("generate", "--top-k", "1000", "--max-new-tokens", "5", "--seed", "1")
    assert done.code == 0
    assert "--top-k 1000 is more than the" in done.err
    assert "top-k" not in cli("generate", "--max-new-tokens", "5", "--seed", "1").err
    assert done.out == cli("generate", "--top-k", "0", "--max-new-tokens", "5", "--seed", "1").out


def test_probabilities_show_every_token_with_its_alternatives(cli: Any) -> None:
    assert len(cli("generate", "--probs", "-p", "To be", "--max-new-tokens", "8", "--seed", "1").out.splitlines()) <= 2 + 8
    done = cli("generate", "--alternatives", "-p", "To be", "--max-new-tokens", "8", "--seed", "1")
    assert done.code == 0
    head, *lines = done.out.splitlines()
    assert head.split()[:2] == ["token", "p"]
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("To be"))]
    assert len(table) == 8
    for row in table:
        assert 0 <= float(row.split()[1]) <= 1
        assert len(row.split()) == 2 + 5 * 2


@pytest.mark.parametrize("command", [["runs", "plot", "first"], ["generate", "first", "--prompt", "To"]])
def test_a_page_never_replaces_a_file_of_a_run(command: list[str], cli: Any, trained: Path) -> None:
    before = Path("runs/first/run.json").read_bytes()
    done = cli(*command, "--html", "runs/first/run.json")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert Path("runs/first/run.json").read_bytes() == before


def test_html_is_one_self_contained_page_that_text_cannot_break_out_of(cli: Any, trained: Path) -> None:
    done = cli("generate", "--html", "view.html", "-p", "To be", "--max-new-tokens", "8", "--seed", "1")
    assert (done.code, done.out) == (0, "")
    page = (trained / "view.html").read_text("utf-8")
    assert '"prompt": "To be"' in page
    for outside in ("http://", "https://", "src=", "@import"):
        assert outside not in page


def test_a_sweep_shows_each_setting_side_by_side(cli: Any) -> None:
    done = cli("generate", "--sweep", "temperature=0.3,1.5", "-p", "To be", "--max-new-tokens", "30", "--seed", "1")
    assert done.code == 0
    for part in ("temperature 0.3", "temperature 1.5", "nats per character", "distinct-1", "distinct-3"):
        assert part in done.out
    assert done.out.count("To be") == 2


def test_interactive_takes_prompts_and_commands(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["To be", "/set temperature 0", "/set max_new_tokens 7", "To be", "To be", "/seed 4", "/style creative", "/show", "/run first",
             "/help", "", "/nonsense", "/set x", "/seed x", "/run", "/set max_new_tokens 0", "To €", "/quit", "never read"]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    done = cli("generate", "-i", "--max-new-tokens", "5")
    assert done.code == 0
    texts = done.out.splitlines()
    assert len(done.out.replace("\n", "")) >= 10
    assert texts[-1] == texts[-2]  # greedy twice
    assert done.err.count("Error: ") == 6
    assert "temperature 1.2" in done.err
    assert "never" not in done.out


def test_interactive_ends_at_the_end_of_input(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli("generate", "-i").code == 0


def test_ctrl_c_in_the_loop_stops_the_text_only(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_cli.generation.engine import Engine

    original, calls = Engine.step, []

    def step(self: Engine) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr(sys, "stdin", io.StringIO("To be\nTo be\n"))
    done = cli("generate", "-i", "--max-new-tokens", "5")
    assert done.code == 0
    assert len(calls) == 3 + 4  # the first step of a text gives two tokens: one from reading the prompt


def test_generating_imports_no_torch() -> None:
    command = "run(['generate', '--max-new-tokens', '3', '--seed', '1'])"
    code = f"import sys; from minigpt_cli.cli import run; {command}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_closed_pipe_ends_quietly() -> None:
    command = [sys.executable, "-m", "minigpt_cli", "generate", "--max-new-tokens", "200000", "--seed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    noise = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 0
    assert noise.count("\n") == 1
    assert "Traceback" not in noise


def test_damaged_weights_use_the_previous_save_with_a_warning_or_end_in_one_line(cli: Any, trained: Path) -> None:
    path = trained / "runs/first/best.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    done = cli("generate", "--max-new-tokens", "3")
    if done.code == 0:
        assert "using the one before it" in done.err
    else:
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert "checksum" in done.err


def test_last_and_best_are_the_weights_of_their_steps(cli: Any) -> None:
    record = RunStore("runs").find("first").record
    assert f"step {record.stop_step}" in cli("generate", "--ckpt", "last", "--max-new-tokens", "2").err
    assert record.best is not None
    assert f"step {record.best.step}" in cli("generate", "--ckpt", "best", "--max-new-tokens", "2").err


def change_weights(change: Any) -> None:
    """Change the best weights of `first` as a stranger would: with a record that vouches for them, and no save before."""
    run = RunStore(Path("runs")).find("first")
    tensors = {name: tensor.copy() for name, tensor in safetensors.numpy.load_file(run.file("best.safetensors")).items()}
    change(tensors)
    data = safetensors.numpy.save(tensors)
    run.file("best.safetensors").write_bytes(data)
    files = {**run.record.files, "best.safetensors": FileRecord(sha256=atomic_io.sha256(data), bytes=len(data))}
    run.file("run.json").write_text(run.record.model_copy(update={"files": files}).to_json())
    shutil.rmtree(run.file("previous"), ignore_errors=True)
    snapshots.forget()


@pytest.mark.parametrize("flags", [["--num-samples", "16"], ["--probs"], ["--greedy"], ["--engine", "torch"], ["--json"]])
def test_a_token_whose_weights_are_not_numbers_is_named_and_nothing_is_written(flags: list[str], cli: Any) -> None:
    change_weights(lambda tensors: tensors["token_embedding.weight"][5].fill(float("nan")))
    done = cli("generate", "first", "--prompt", "To", "--max-new-tokens", "40", "--seed", "1", *flags)
    assert (done.code, done.out) == (1, "")
    assert "holds numbers that are not finite" in done.err
    assert "token_embedding.weight" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert "not finite" in cli("runs", "verify", "first").out


def test_an_engine_in_c_without_a_compiler_says_what_to_install(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    native_build.forget()
    try:
        done = cli("generate", "first", "--prompt", "To", "--max-new-tokens", "3", "--engine", "native")
        assert (done.code, done.out) == (1, "")
        assert done.err.strip().splitlines()[-1] == (
            "Error: no native decoder: there is no C compiler: pip install 'minigpt-cli[native]' brings one; or install cc, gcc or clang, "
            "or name one in CC; or use --engine torch"
        )
        assert cli("generate", "first", "--prompt", "To", "--max-new-tokens", "3", "--greedy").out.startswith("To")
    finally:
        monkeypatch.undo()
        native_build.forget()


@pytest.mark.parametrize("scale", [1e12, 1e30])
@pytest.mark.parametrize("flags", [["--num-samples", "3"], ["--probs"], ["--greedy"]])
@pytest.mark.parametrize("engine", ["auto", "native-fp32", "torch"])
def test_weights_too_large_to_compute_with_end_in_one_line_or_in_text(engine: str, flags: list[str], scale: float, cli: Any) -> None:
    if engine == "native-fp32" and not available():
        pytest.skip("no C compiler")
    change_weights(lambda tensors: [tensor.__imul__(scale) for tensor in tensors.values()])
    done = cli("generate", "first", "--prompt", "To", "--max-new-tokens", "20", "--seed", "1", "--engine", engine, *flags)
    assert "Traceback" not in done.err
    if done.code:
        assert done.code == 1
        assert "not finite" in done.err
        assert len([line for line in done.err.strip().splitlines() if "first" not in line]) <= 1
    else:
        assert done.out.startswith("To")
