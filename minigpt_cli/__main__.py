"""python -m minigpt_cli is minigpt (torchrun starts it so)."""

from minigpt_cli.cli import main

if __name__ == "__main__":
    main()
