"""`python -m fxoffload`: the same as the command `fxoffload`."""

from fxoffload.cli.main import main

main()
