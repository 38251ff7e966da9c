"""The process of `minigpt`, and of python -m minigpt_cli (torchrun starts it so): one command line, and its exit code."""

from minigpt_cli import interrupts


def main() -> None:
    """The entry point of `minigpt`."""
    try:
        interrupts.listen()
        from minigpt_cli import cli

        interrupts.leave(cli.main())
    except KeyboardInterrupt:
        interrupts.leave(130)


if __name__ == "__main__":
    main()
