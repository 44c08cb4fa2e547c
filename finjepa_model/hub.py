"""The Hugging Face Hub as it answers: trouble that passes is waited out, and what stays is one line with the way out."""

import re
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from finjepa_model.errors import FinJEPAError

RepoKind = Literal["model", "dataset"]
Answer = TypeVar("Answer")
_TRY_AGAIN = (408, 409, 412, 425, 429)  # and what is 500 or more; 412: somebody committed since the look


def patiently(
    question: Callable[[], Answer],
    explained: Callable[[Exception], FinJEPAError],
    tries: int,
    longest_s: float,
    trouble: tuple[type[Exception], ...] = (Exception,),
) -> Answer:
    """What the Hub answers. It is asked again where that may help, as late as it wants.

    Args:
        longest_s: a Hub that asks for more is not waited for.
        trouble: what is waited out or explained; the rest is raised as it is.
    """
    for attempt in range(tries):
        try:
            return question()
        except FinJEPAError:
            raise
        except trouble as error:
            wait_s = wait_before_retry(error, attempt)
            if wait_s is None or wait_s > longest_s or attempt == tries - 1:
                # without its cause: the client's errors quote answers of a server, which may quote the token
                raise explained(error) from None
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def wait_before_retry(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None if trying again cannot help."""
    from huggingface_hub import constants
    from huggingface_hub.utils import httpx

    status, asked = answer_of(error)
    if status is None:  # RuntimeError: how the client wraps a failed upload
        met = [isinstance(one, httpx.HTTPError | ConnectionError | RuntimeError) for one in (error, error.__cause__)]
        may_pass = any(met) and not constants.is_offline_mode()
    else:
        may_pass = status in _TRY_AGAIN or status >= 500
    return (float(asked) if asked.isdigit() else min(30.0, 2.0**attempt)) if may_pass else None


def answer_of(error: Exception) -> tuple[int | None, str]:
    """HTTP status and Retry-After of what the Hub answered."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if response is not None:
            return response.status_code, response.headers.get("retry-after", "")
    return None, ""


def without_token(text: str) -> str:
    """A text without anything that looks like a token of the Hub."""
    return re.sub(r"hf_\w{6,}", "hf_***", text)


def repo_url(repo_id: str, kind: RepoKind = "model") -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def unread(error: Exception, repo_id: str, kind: RepoKind = "model") -> FinJEPAError:
    """Why something cannot be read from a repository."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what the client met before it looked into its cache
    what = f"the Hub {'data set' if kind == 'dataset' else 'repository'} {repo_id}"
    status, _ = answer_of(error)
    of_datasets = type(error).__name__ == "DatasetNotFoundError"  # of the library, for whatever cannot be had
    if constants.is_offline_mode():
        text = f"{what} is not in the cache and HF_HUB_OFFLINE is set; unset it once to fetch it"
    elif isinstance(error, GatedRepoError) or (of_datasets and "is a gated dataset" in str(error)):
        text = f"{what} is gated; accept its terms at {repo_url(repo_id, kind)}, then run `hf auth login`"
    elif isinstance(error, RevisionNotFoundError):
        text = f"{what} has no such revision; see {repo_url(repo_id, kind)}/commits/main"
    elif isinstance(error, RepositoryNotFoundError) or of_datasets:
        missing = what.removeprefix("the Hub ")
        text = f"there is no {missing} on {constants.ENDPOINT} that you may read; check the name, or `hf auth login`"
    elif status == 401:
        text = f"the Hub does not accept your token for {repo_id}; run `hf auth login` or renew HF_TOKEN"
    elif status == 404:
        text = f"a file of {what} has disappeared; it may be changing, try again later"
    elif status is not None:
        text = f"the Hub answers {status} for {repo_id}; try again later"
    else:
        text = f"{what} cannot be fetched ({type(error).__name__}); check the network, then try again"
    return FinJEPAError(text)
