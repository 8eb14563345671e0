"""Start the command line: `mandorla`, and `python -m mandorla`.

Control-C ends the process without a word until the command line is there to say what it means.
"""

import signal


def main(arguments: list[str] | None = None) -> None:
    """Run the command line on `arguments` (default: those of the process) and exit."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mandorla import cli

    signal.signal(signal.SIGINT, before)
    cli.main(arguments)


if __name__ == "__main__":
    main()
