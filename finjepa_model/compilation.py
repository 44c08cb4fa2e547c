"""What a user is told where torch.compile does not work."""

from collections.abc import Iterator
from contextlib import contextmanager

from finjepa_model.errors import FinJEPAError


@contextmanager
def compiling(what: str, remedy: str) -> Iterator[None]:
    """Around the first call of what is compiled, for it is compiled then.

    Raises:
        FinJEPAError: if it cannot be; the line says of `what` that it cannot, and names a C++ compiler and the `remedy`.
    """
    try:
        yield
    except Exception as error:  # of dynamo, of the backend, of the C++ compiler: there is no common base
        reason = str(error).strip().partition("\n")[0]
        raise FinJEPAError(f"{what} cannot be compiled here ({reason}): install a C++ compiler, or {remedy}") from error
