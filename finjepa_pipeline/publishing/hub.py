"""Publishes a release to the Hugging Face Hub exactly once: one commit, one tag.

Every attempt first looks at what stands on the Hub and then does only what is missing. So a lost answer, a faster publisher,
a crash between commit and tag, and a second run are one case: the next look finds the commit by its title and goes on.
"""

import re
import time
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.publishing.package import Package

ATTEMPTS = 8
LONGEST_WAIT_S = 300.0  # a Hub that asks for more is left for the next run
REQUEST_TIMEOUT_S = 60.0  # the client's own default is to wait for ever
_TROUBLE = (httpx.HTTPError, OSError, RuntimeError, ValueError)  # RuntimeError: how the client wraps a failed upload
_TRY_AGAIN = (408, 409, 412, 425, 429)  # and what is 500 or more; 412: somebody committed since the look

set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=REQUEST_TIMEOUT_S))


@dataclass(frozen=True)
class Publication:
    """A release that stands on the Hub; `new` if this call made its commit."""

    url: str
    commit: str
    new: bool


def is_offline() -> bool:
    return constants.is_offline_mode()


def repo_url(repo_id: str) -> str:
    return f"{constants.ENDPOINT}/{repo_id}"


def publish(package: Package, repo_id: str) -> Publication:
    """Make the Hub hold the package as one commit with its tag, whatever was there and whatever goes wrong on the way.

    Raises:
        FinJEPAError: if the Hub refuses, or stays out of reach; one line that says what to do, without the token.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _complete(HfApi(), package, repo_id)
        except _TROUBLE as error:
            wait_s = _wait_before_retry(error, attempt)
            if wait_s is None or attempt == ATTEMPTS - 1:
                # without its cause: the client's errors quote answers of a server, which may quote the token
                raise FinJEPAError(_advice(error, package, repo_id)) from None
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def published(package: Package, repo_id: str) -> str | None:
    """The commit of the package on the Hub, None if it is not there. Changes nothing."""
    try:
        return _find_commit(HfApi(), package, repo_id)
    except RepositoryNotFoundError:
        return None
    except _TROUBLE as error:
        raise FinJEPAError(_advice(error, package, repo_id)) from None


def _complete(api: HfApi, package: Package, repo_id: str) -> Publication:
    try:
        refs = api.list_repo_refs(repo_id)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(repo_id, exist_ok=True)
        refs = api.list_repo_refs(repo_id)
    commit = _find_commit(api, package, repo_id)
    new = commit is None
    if commit is None:
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, package.folder / name) for name in CHECKPOINT_FILES],
            commit_message=package.title,
            commit_description=f"content {package.content_hash}",
            # the Hub refuses where somebody committed since
            parent_commit=next((branch.target_commit for branch in refs.branches if branch.name == "main"), None),
        ).oid
    tagged = next((tag.target_commit for tag in refs.tags if tag.name == package.tag), None)
    if tagged != commit:
        if tagged is not None:
            api.delete_tag(repo_id, tag=package.tag)
        api.create_tag(repo_id, tag=package.tag, revision=commit)
    return Publication(repo_url(repo_id), commit, new)


def _find_commit(api: HfApi, package: Package, repo_id: str) -> str | None:
    """The first commit that released this content."""
    titled = [commit.commit_id for commit in api.list_repo_commits(repo_id) if commit.title == package.title]
    return titled[-1] if titled else None


def _wait_before_retry(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before the next look; None if trying again cannot help."""
    status, asked = _answer(error)
    if status is None:
        may_pass = isinstance(error, httpx.TransportError | ConnectionError | RuntimeError) and not is_offline()
    else:
        may_pass = status in _TRY_AGAIN or status >= 500
    wait_s = float(asked) if asked.isdigit() else min(30.0, 2.0**attempt)
    return wait_s if may_pass and wait_s <= LONGEST_WAIT_S else None


def _answer(error: Exception) -> tuple[int | None, str]:
    """HTTP status and Retry-After of what the Hub answered."""
    for one in (error, error.__cause__):
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code, one.response.headers.get("retry-after", "")
    return None, ""


def _advice(error: Exception, package: Package, repo_id: str) -> str:
    status, asked = _answer(error)
    token = get_token()
    said = (str(error).strip().splitlines() or [""])[0]
    said = re.sub(r"hf_\w{6,}", "hf_***", said.replace(token, "***") if token else said)
    if status == 401:
        found = "the Hub does not accept the token (401): run `hf auth login`, or put a valid one into HF_TOKEN"
    elif isinstance(error, GatedRepoError):
        found = f"the Hub repository {repo_id} is gated for this token: ask its owner for access"
    elif status == 403:
        found = f"the token may not write to {repo_id} (403): use one with write access, or another --hub-repo-id"
    elif status == 429:
        found = f"the Hub asks to wait {asked or 'a few'} seconds (429)"
    elif status is not None:
        found = f"the Hub answers {status} for {repo_id} ({said})"
    elif isinstance(error, ValueError):
        found = f"the Hub client refuses {repo_id}: {said}"
    else:
        found = f"the Hub cannot be reached ({type(error).__name__}: {said})"
    return f"{found}; the release stays in {package.folder}; run `finjepa publish` again when that is mended"
