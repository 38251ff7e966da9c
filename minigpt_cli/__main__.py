"""The process of `minigpt`, and of python -m minigpt_cli (torchrun starts it so): one command line, and its exit code."""

import sys

from minigpt_cli import interrupts
from minigpt_cli.display import waiting


def main() -> None:
    """The entry point of `minigpt`."""
    try:
        interrupts.listen()
        waiting.begin(sys.argv[1:])
        from minigpt_cli import cli

        interrupts.leave(cli.main())
    except KeyboardInterrupt:
        interrupts.leave(130)


if __name__ == "__main__":
    main()
