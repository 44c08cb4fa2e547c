"""Publishes to the Hugging Face Hub exactly once: a release as one commit and one tag, a night of the live record as one commit.

Every attempt first looks at what stands on the Hub and then does only what is missing. So a lost answer, a faster publisher,
a crash between commit and tag, and a second run are one case: the next look finds the commit by its title and goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download, set_client_factory
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import GitRefs
from huggingface_hub.utils import httpx

from finjepa_model.errors import FinJEPAError
from finjepa_model.hub import RepoKind, answer_of, patiently, without_token

ATTEMPTS = 8
LONGEST_WAIT_S = 300.0  # a Hub that asks for more is left for the next run
REQUEST_TIMEOUT_S = 60.0  # the client's own default is to wait for ever
_TROUBLE = (httpx.HTTPError, OSError, RuntimeError, ValueError)  # RuntimeError: how the client wraps a failed upload

set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=REQUEST_TIMEOUT_S))


def is_offline() -> bool:
    return constants.is_offline_mode()


def publish(
    repo_id: str,
    kind: RepoKind,
    title: str,
    files: Callable[["Head"], Mapping[str, Path | bytes]],
    stays: str,
    tag: str | None = None,
    description: str = "",
) -> tuple[str, bool]:
    """Make the Hub hold one commit with this title, and the tag on it, whatever was there and whatever goes wrong on the way.

    Args:
        files: what to commit, by path in the repository, from what stands there; it may refuse with a FinJEPAError.
        stays: the end of the message where the Hub refuses.

    Returns:
        The commit, and whether this call made it.

    Raises:
        FinJEPAError: if the Hub refuses, or stays out of reach; one line that says what to do, without the token.
    """

    def attempt(api: HfApi) -> tuple[str, bool]:
        refs = _refs(api, repo_id, kind)
        commit = _find_commit(api, repo_id, kind, title)
        new = commit is None
        if commit is None:
            # named as the parent of a commit, the Hub refuses where somebody committed since
            parent = next((branch.target_commit for branch in refs.branches if branch.name == "main"), None)
            wanted = files(Head(api, repo_id, kind, parent)).items()
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(path, content) for path, content in wanted],
                commit_message=title,
                commit_description=description,
                repo_type=kind,
                parent_commit=parent,
            ).oid
        tagged = next((one.target_commit for one in refs.tags if one.name == tag), None)
        if tag is not None and tagged != commit:
            if tagged is not None:
                api.delete_tag(repo_id, tag=tag)
            api.create_tag(repo_id, tag=tag, revision=commit)
        return commit, new

    return patiently(
        lambda: attempt(HfApi()), lambda error: _refused(error, repo_id, stays), ATTEMPTS, LONGEST_WAIT_S, _TROUBLE
    )


@dataclass(frozen=True)
class Head:
    """What stands on the main branch of a repository at one commit."""

    api: HfApi
    repo_id: str
    kind: RepoKind
    commit: str | None

    def paths(self) -> set[str]:
        return set(self.api.list_repo_files(self.repo_id, repo_type=self.kind, revision=self.commit))

    def file(self, path: str) -> Path:
        return Path(hf_hub_download(self.repo_id, path, repo_type=self.kind, revision=self.commit))


def published(repo_id: str, title: str, stays: str) -> str | None:
    """The commit with this title in a repository of models, None if it is not there. Changes nothing."""
    try:
        return _find_commit(HfApi(), repo_id, "model", title)
    except RepositoryNotFoundError:
        return None
    except _TROUBLE as error:
        raise _refused(error, repo_id, stays) from None


def _refs(api: HfApi, repo_id: str, kind: RepoKind) -> GitRefs:
    """Branches and tags of a repository, which is made where there is none."""
    try:
        return api.list_repo_refs(repo_id, repo_type=kind)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type=kind, exist_ok=True)
        return api.list_repo_refs(repo_id, repo_type=kind)


def _find_commit(api: HfApi, repo_id: str, kind: RepoKind, title: str) -> str | None:
    """The first commit that has this title."""
    titled = [commit.commit_id for commit in api.list_repo_commits(repo_id, repo_type=kind) if commit.title == title]
    return titled[-1] if titled else None


def _refused(error: Exception, repo_id: str, stays: str) -> FinJEPAError:
    status, asked = answer_of(error)
    token = get_token()
    said = (str(error).strip().splitlines() or [""])[0]
    said = without_token(said.replace(token, "***") if token else said)
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
    return FinJEPAError(f"{found}; {stays}")
