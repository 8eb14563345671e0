"""The one exception that a user's mistake raises, and the one warning.

A message says what is wrong, where (file, key, index), and what to do about it, in one line. The command
line prints that line alone and exits with status 2; `--debug` shows the traceback. A warning is one line as well, and
the work goes on.
"""

import difflib
from collections.abc import Iterable


class MandorlaError(Exception):
    """Report a mistake in the user's files, settings or arguments."""


class MandorlaWarning(UserWarning):
    """Report what may be a mistake in the user's data."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return a hint at the one of `words` that is most like `word`, in capitals or not, to go on with in a message.

    Empty if none is like it.
    """
    written = {each.casefold(): each for each in words}
    near = difflib.get_close_matches(word.casefold(), written, n=1)
    return f", did you mean {written[near[0]]!r}?" if near else ""
