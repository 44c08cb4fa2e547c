"""The one exception that a user sees."""

import difflib
from collections.abc import Iterable


class FinJEPAError(Exception):
    """A mistake that the user can mend: its text is one line that names the cause and the way out."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the one that was probably meant, or all where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
