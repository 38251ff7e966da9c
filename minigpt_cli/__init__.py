"""minigpt: train small GPTs from scratch on your own text, generate with them, and learn which run is really better.

From Python: `from minigpt_cli import Run, train, compare, leaderboard` (docs/python.md). Nothing is loaded before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt_cli.errors import MiniGPTError
    from minigpt_cli.interface import Run, compare, leaderboard, train

__all__ = ["MiniGPTError", "Run", "compare", "leaderboard", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from minigpt_cli import errors, interface

    return getattr(errors if name == "MiniGPTError" else interface, name)
