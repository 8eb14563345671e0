"""Run the command line: `python -m mandorla` is `mandorla`."""

from mandorla.cli import main

main()
