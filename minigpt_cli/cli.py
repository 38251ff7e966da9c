"""The Typer app. It imports commands when they run, and turns every error into one line and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.main import get_command

from minigpt_cli import threads
from minigpt_cli.commands.help_page import with_plain_help
from minigpt_cli.commands.lazy_commands import Mount, lazy_group
from minigpt_cli.display import waiting
from minigpt_cli.errors import Interrupted, MiniGPTError, synonym
from minigpt_cli.storage.atomic_io import final_name
from minigpt_cli.storage.memory import ran_out

COMMANDS = {
    "train": Mount("minigpt_cli.commands.train:train", "Train a model on a text; without arguments a small one on the default text."),
    "generate": Mount("minigpt_cli.commands.generate:generate", "Continue a prompt with a trained model."),
    "eval": Mount("minigpt_cli.commands.evaluate:evaluate", "Score a run on every character of a text."),
    "compare": Mount("minigpt_cli.commands.compare:compare", "Tell which run is really better, and by how much."),
    "runs": Mount("minigpt_cli.commands.runs:app", "List, rank, show, watch, plot, tag, verify, export and remove runs."),
    "tokenize": Mount("minigpt_cli.commands.tokenize:tokenize", "Turn a text into token files, and show its tokens."),
}

app = typer.Typer(
    name="minigpt",
    cls=lazy_group(COMMANDS),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def minigpt(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit; with -v all that a bug report needs, and a self-test.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With --version: print more.")] = False,
    learn: Annotated[bool, typer.Option("--learn", help="A guided hour: bet, train, see, and explain a GPT, on your own text.")] = False,
) -> None:
    """\b
    Examples:
      minigpt train                       train on the default text, three minutes
      minigpt train notes.txt --arch moe  your own text, a mixture of experts
      minigpt generate --prompt "Once"    continue a text with the newest model
      minigpt runs leaderboard            which run is best
      minigpt --learn                     an hour that explains a GPT

    Trains small GPTs from scratch on your own text and machine, and measures honestly which run is really better.

    \b
    Exit codes of every command:
      0     done
      1     failed at work: a full disk, a damaged run
      2     wrong usage, settings or input
      3     training diverged; its best weights are kept
      130   interrupted by Ctrl-C, 143 by SIGTERM: saved
    """
    if version:
        _print_versions(verbose)
    elif learn:
        from minigpt_cli.course.tutor import learn as hold_course

        raise typer.Exit(hold_course(run))
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
    else:
        return
    raise typer.Exit


def _print_versions(verbose: bool) -> None:
    """Print the version; with `verbose` also what somebody who helps would ask: machine, kernels and decoder (or why they are not in use),
    folders, packages, and whether a training step is right here (imports torch)."""
    import platform
    from importlib.metadata import version

    from minigpt_cli.display import console

    console.write(f"minigpt {version('minigpt-cli')}")
    if verbose:
        from minigpt_cli.training.installation import describe

        for name, what in {"python": platform.python_version(), **describe()}.items():
            console.write(f"{name:8} {what}")


def main() -> int:
    """Run the command line of this process and return its exit code."""
    _replace_closed_streams()
    threads.share_cores()
    return run(sys.argv[1:])


def _replace_closed_streams() -> None:
    """Replace streams that the shell closed (`>&-`) by the null device; else the next opened file would get their descriptor."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` and return its exit code; every error becomes one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = with_plain_help(get_command(app))(list(arguments), prog_name="minigpt", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as exit_:  # by shell completion, and by Typer for a closed pipe
        return _after_closed_pipe() if isinstance(exit_.__context__, BrokenPipeError) else _as_code(exit_.code)
    except BrokenPipeError:
        return _after_closed_pipe()
    except KeyboardInterrupt:
        return 130
    except Interrupted as error:
        return _fail(str(error), error.exit_code)
    except typer.Abort:
        return _fail("cancelled", 1)
    except typer.TyperException as error:
        if (flag := getattr(error, "option_name", "")) in ("--preset", "--experiment"):  # without a value
            return _list(flag)
        return _fail(_usage_message(error, arguments), error.exit_code)
    except MiniGPTError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(_os_message(error), 1)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not ran_out(error):
            raise
        return _fail("out of memory: close other programs, raise the limit, or use a smaller model, batch or text", 1)
    finally:
        waiting.remove()
    return _as_code(code)


def _list(flag: str) -> int:
    from minigpt_cli.commands.experiments import show_experiments
    from minigpt_cli.commands.presets import show_presets

    try:
        show_presets() if flag == "--preset" else show_experiments()
    except BrokenPipeError:
        return _after_closed_pipe()
    return 0


def _as_code(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _fail(message: str, code: int) -> int:
    from minigpt_cli.display.console import error

    error(message)
    return code


def _after_closed_pipe() -> int:
    """End without an error, and without a flush into the closed pipe at exit."""
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())
    return 0


def _value_of(flag: str, arguments: Sequence[str]) -> str:
    """The value of a flag as it was typed, after a space; empty if it is not there."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == flag:
            return f" {following}"
        if argument.startswith(f"{flag}="):
            return f" {argument[len(flag) + 1 :]}"
    return ""


def _os_message(error: OSError) -> str:
    """One line for a full disk, a folder without write permission, and similar errors."""
    file = final_name(os.fsdecode(error.filename)) if error.filename else ""
    where = f"{file}: " if file else ""
    hint = {errno.ENOSPC: ": free some space, then go on with --resume", errno.EACCES: ": check its permissions", errno.EROFS: ""}
    return f"{where}{error.strerror or error}{hint.get(error.errno or 0, '')}"


def _usage_message(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Typer's message as one line in plain words, with only the nearest flag or command instead of all similar ones."""
    from minigpt_cli.commands.plain_words import instead_of, plainly

    if (flag := getattr(error, "option_name", None)) and type(error).__name__ == "NoSuchOption":
        ctx: Any = getattr(error, "ctx", None)
        known = [name for param in ctx.command.get_params(ctx) for name in (*param.opts, *param.secondary_opts)] if ctx else []
        here = synonym(flag, [name[2:].replace("-", "_") for name in known])
        begun = [name for name in known if name.startswith(f"{flag}-")]
        near = [f"--{here.replace('_', '-')}"] if here else begun[:1] or get_close_matches(flag, known, n=1, cutoff=0.6)
        return f"unknown flag {flag}: " + (f"did you mean {near[0]}?" if near else f"see {ctx.command_path if ctx else 'minigpt'} --help")
    message = plainly(" ".join(error.format_message().split()))
    if match := re.match(r"Invalid value for '(--[\w-]+)'.*?: (.*)", message):
        return f"{match[1]}{_value_of(match[1], arguments)}: {match[2].rstrip('.')}"
    if (match := re.match(r"No such command '([^']*)'", message)) and (where := instead_of(match[1], in_runs=arguments[0] == "runs")):
        return f"no such command {match[1]!r}: it is {where}"
    path = getattr(getattr(error, "ctx", None), "command_path", "minigpt")
    if message.startswith("Missing argument"):
        return f"{message[:1].lower()}{message[1:].rstrip('.')}: see {path} --help"
    if match := re.match(r"Got unexpected extra arguments? \((.*)\)|Got unexpected extra argument\(s\) \((.*)\)", message):
        hint = "give a prompt with --prompt" if path == "minigpt generate" else f"see {path} --help"
        return f"unexpected {match[1] or match[2]!r}: {hint}"
    return message[:1].lower() + message[1:]
