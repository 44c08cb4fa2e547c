"""Publishes a release to the Hugging Face Hub exactly once: one commit, one tag, read back.

Every attempt first looks at what stands on the Hub and then does only what is missing. So a lost answer, a faster publisher,
a crash between commit and tag, and a second run are one case: the next look finds the commit by its title and goes on.
"""

import hashlib
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import httpx

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.publishing.package import CONTENT, Package
from finjepa_pipeline.store import sha256

ATTEMPTS = 8
LONGEST_WAIT_S = 300.0  # a Hub that asks for more is left for the next run
REQUEST_TIMEOUT_S = 60.0  # the client's own default is to wait for ever
_NETWORK_TROUBLE = (httpx.HTTPError, OSError, RuntimeError, ValueError)
_TRY_AGAIN = (408, 409, 412, 425, 429)  # and what is 500 or more; 412: somebody committed since the look

set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=REQUEST_TIMEOUT_S))


@dataclass(frozen=True)
class Publication:
    """A release that stands on the Hub; `new` if this call made its commit."""

    url: str
    commit: str
    tag: str
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
        except _NETWORK_TROUBLE as error:
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
    except _NETWORK_TROUBLE as error:
        raise FinJEPAError(_advice(error, package, repo_id)) from None


def redact(text: str) -> str:
    """The first line of a text, without anything that is a token or looks like one."""
    token = get_token()
    line = (text.strip().splitlines() or [""])[0]
    return re.sub(r"hf_\w{6,}", "hf_***", line.replace(token, "***") if token else line)


def _complete(api: HfApi, package: Package, repo_id: str) -> Publication:
    try:
        head = _head(api, repo_id)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(repo_id, exist_ok=True)
        head = _head(api, repo_id)
    commit = _find_commit(api, package, repo_id)
    new = commit is None
    if commit is None:
        files = [CommitOperationAdd(name, package.folder / name) for name in CHECKPOINT_FILES]
        made = api.create_commit(
            repo_id,
            files,
            commit_message=package.title,
            commit_description=f"content {package.content_hash}",
            parent_commit=head,  # the Hub refuses where somebody committed since
        )
        commit = made.oid
    _tag(api, package, repo_id, commit)
    # a commit that was found may carry another card of the same content, made in another home
    if not _same_content(api, package, repo_id, commit, CHECKPOINT_FILES if new else CONTENT):
        raise FinJEPAError(
            f"{repo_url(repo_id)} at {commit[:8]} does not hold what was sent; delete that commit and run "
            "`finjepa publish` again"
        )
    return Publication(repo_url(repo_id), commit, package.tag, new)


def _head(api: HfApi, repo_id: str) -> str | None:
    branches = api.list_repo_refs(repo_id).branches
    return next((branch.target_commit for branch in branches if branch.name == "main"), None)


def _find_commit(api: HfApi, package: Package, repo_id: str) -> str | None:
    """The commit that released this content: the first of that title, or else what the tag names if the content is the same."""
    titled = [commit.commit_id for commit in api.list_repo_commits(repo_id) if commit.title == package.title]
    if titled:
        return titled[-1]
    tagged = _tagged(api, package, repo_id)
    return tagged if tagged and _same_content(api, package, repo_id, tagged, CONTENT) else None


def _tagged(api: HfApi, package: Package, repo_id: str) -> str | None:
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    return tags.get(package.tag)


def _tag(api: HfApi, package: Package, repo_id: str, commit: str) -> None:
    """Put the tag on the commit; one that stands elsewhere is moved, since `exist_ok` leaves it where it is."""
    tagged = _tagged(api, package, repo_id)
    if tagged == commit:
        return
    if tagged is not None:
        api.delete_tag(repo_id, tag=package.tag)
    api.create_tag(repo_id, tag=package.tag, revision=commit, exist_ok=True)
    if _tagged(api, package, repo_id) != commit:
        raise ConnectionError("another publisher moved the tag meanwhile")


def _same_content(api: HfApi, package: Package, repo_id: str, commit: str, names: Sequence[str]) -> bool:
    """Whether the Hub's files at a commit are the package's: sha256 of what is in LFS or Xet, git's hash of the others."""
    stored = {info.path: info for info in api.get_paths_info(repo_id, list(names), revision=commit)}
    return all(_is_file(stored.get(name), package.folder / name) for name in names)


def _is_file(stored: RepoFile | RepoFolder | None, path: Path) -> bool:
    if not isinstance(stored, RepoFile):
        return False
    if stored.lfs:
        return stored.lfs.sha256 == sha256(path)
    content = path.read_bytes()
    return stored.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _wait_before_retry(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before the next look; None if trying again cannot help."""
    status, headers = _status(error)
    backoff_s = min(30.0, 2.0**attempt) * random.uniform(0.8, 1.2)
    if status is None:
        is_transport = isinstance(error, httpx.TransportError | ConnectionError | RuntimeError)
        return backoff_s if is_transport and not is_offline() else None
    if status not in _TRY_AGAIN and status < 500:
        return None
    if status == 412:
        return random.uniform(0.0, 1.0)
    asked = headers.get("retry-after", "")
    wait_s = float(asked) if asked.isdigit() else backoff_s
    return wait_s if wait_s <= LONGEST_WAIT_S else None


def _status(error: Exception) -> tuple[int | None, dict[str, str]]:
    """HTTP status and headers of the answer; the client wraps a failed LFS upload into a RuntimeError."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, HfHubHTTPError):
            return candidate.response.status_code, dict(candidate.response.headers)  # names in lower case
    return None, {}


def _advice(error: Exception, package: Package, repo_id: str) -> str:
    status, headers = _status(error)
    stays = f"the release stays in {package.folder}"
    again = f"{stays}; run `finjepa publish` again"
    if status == 401:
        login = "run `hf auth login`, or put a valid one into HF_TOKEN, then `finjepa publish`"
        return f"the Hub does not accept the token (401): {login}; {stays}"
    if isinstance(error, GatedRepoError):
        return f"the Hub repository {repo_id} is gated for this token: ask its owner for access; {stays}"
    if status == 403:
        other = "use a token with write access to it, or another --hub-repo-id"
        return f"the token may not write to {repo_id} (403): {other}; {stays}"
    if status == 429:
        return f"the Hub asks to wait {headers.get('retry-after', 'a few')} seconds (429); {again} later"
    if status is not None:
        return f"the Hub answers {status} for {repo_id} ({redact(str(error))}); {again} later"
    if isinstance(error, ValueError):
        return f"the Hub client refuses {repo_id}: {redact(str(error))}; {stays}"
    return f"the Hub cannot be reached ({type(error).__name__}: {redact(str(error))}); {again} when it can"
