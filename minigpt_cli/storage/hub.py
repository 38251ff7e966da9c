"""The Hugging Face hub through its own library, and one line for each thing that goes wrong there. No torch.

A login is the person's own: the library finds its token by itself, and minigpt neither reads nor keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minigpt_cli.errors import MiniGPTError, MissingExtra, UsageError

PREFIX = "hf:"
_REFUSED = (401, 403)


def library() -> Any:
    """huggingface_hub, without its progress bars. Raises MissingExtra."""
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise MissingExtra("the Hugging Face hub", "hub") from None
    disable_progress_bars()
    return huggingface_hub


@contextmanager
def explained(doing: str, repo: str, kind: str = "model") -> Iterator[None]:
    """Turn what the library raises while it is `doing` ("download hf:me/x") into a UsageError or MiniGPTError of one line."""
    errors = library().errors
    address = doing.partition(" ")[2]
    try:
        yield
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{address}: its owner asks for an agreement: accept it at https://huggingface.co/{repo}, then log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{address}: {repo} has no such revision: give a branch, a tag or a commit of it") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UsageError(
            f"{address}: the hub has no public {kind} {repo}; see https://huggingface.co/{kind}s (a private one needs `hf auth login`)"
        ) from error
    # OSError covers offline mode and what is not in the cache; ValueError and RuntimeError are answers that make no sense.
    except (_no_connection(errors), OSError, ValueError, RuntimeError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in _REFUSED:
            raise UsageError(f"cannot {doing}: the hub refuses this login ({status}): log in with `hf auth login`") from error
        why = f"the answer is {status}" if status else type(error).__name__
        raise MiniGPTError(f"cannot {doing} ({why}): check the connection to huggingface.co") from error


def _no_connection(errors: Any) -> type[Exception]:
    """What the library's HTTP client raises, whichever client this version has."""
    base: type[Exception] = next(base for base in reversed(errors.HfHubHTTPError.__mro__) if base.__name__ == "HTTPError")
    return base
