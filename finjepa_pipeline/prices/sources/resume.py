"""A download whose connection is reset goes on where it was."""

import contextlib
from collections.abc import Iterator
from typing import Any

from huggingface_hub.utils import get_session, httpx


@contextlib.contextmanager
def resumed_downloads() -> Iterator[None]:
    """Within it, the Hub client resumes a download that a reset cuts.

    It goes on after a connection that was closed too early, but not after one that was reset, of which it keeps nothing: so
    the one is shown to it as the other. Its own limits stay: five tries without progress, in steps of 10 MiB.
    """
    session = get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "response": [*before.get("response", []), _watch]}
    try:
        yield
    finally:
        session.event_hooks = before


def _watch(response: Any) -> None:
    if response.request.method == "GET":
        response.stream = _Watched(response.stream)


class _Watched(httpx.SyncByteStream):
    """The body of an answer; a reset in it is an early end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except httpx.ReadError as error:
            raise httpx.RemoteProtocolError(f"the connection was reset ({error})") from error

    def close(self) -> None:
        self._stream.close()
