"""The one exception that a user's mistake raises.

A message says what is wrong, where (file, key, index), and what to do about it, in one line. The command
line prints that line alone and exits with status 2; `--debug` shows the traceback.
"""


class MandorlaError(Exception):
    """Report a mistake in the user's files, settings or arguments."""
