"""The one exception that a user sees."""


class FinJEPAError(Exception):
    """A mistake that the user can mend: its text is one line that names the cause and the way out."""
