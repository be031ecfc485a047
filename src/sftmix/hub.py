"""Check what the Hugging Face hub has before anything heavy is imported."""

from pathlib import Path

from sftmix.errors import InputError, first_line

WAIT_SECONDS = 10.0


def looks_local(path: str) -> bool:
    """Return whether the path of a model is a local folder and not a hub id."""
    return path.startswith((".", "/", "~")) or Path(path).exists() or path.count("/") != 1


def check_on_hub(kind: str, hub_id: str, revision: str | None, local_copy: str) -> None:
    """Refuse a model or data set that the hub does not provide. (Its client would retry for a minute.)

    The hub is not asked if the cache of the client has a copy, or if HF_HUB_OFFLINE is set.

    Args:
        kind: model or dataset.
        local_copy: Override that gives a local copy instead, for the message.

    Raises:
        InputError: If the hub cannot be reached, has no such id or revision, or requires a login.
    """
    from huggingface_hub import HfApi, constants

    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{hub_id.replace('/', '--')}"
    if constants.HF_HUB_OFFLINE or cached.is_dir():
        return
    try:
        HfApi().repo_info(hub_id, revision=revision, repo_type=kind, timeout=WAIT_SECONDS)
        HfApi().auth_check(hub_id, repo_type=kind)  # a gated repository has public information, but no public files
    except Exception as error:  # the client's and its transport's types, by version
        raise unavailable(kind, hub_id, error, local_copy) from None


def config_file(hub_id: str, revision: str | None) -> Path | None:
    """Return the `config.json` of a model of the hub, or None if neither the cache of the client nor the hub has it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        check_on_hub("model", hub_id, revision, "")
        return Path(hf_hub_download(hub_id, "config.json", revision=revision, etag_timeout=WAIT_SECONDS))
    except Exception:  # the client's and its transport's types, by version
        return None


def newest_commit(kind: str, hub_id: str, local_copy: str) -> str:
    """Return the newest commit of a model or data set, without network the cached one, or raise as `check_on_hub`."""
    from huggingface_hub import HfApi, constants

    try:
        return str(HfApi().repo_info(hub_id, repo_type=kind, timeout=WAIT_SECONDS).sha)
    except Exception as error:  # the client's and its transport's types, by version
        cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{hub_id.replace('/', '--')}" / "refs" / "main"
        if cached.is_file():
            return cached.read_text().strip()
        raise unavailable(kind, hub_id, error, local_copy) from None


def unavailable(kind: str, hub_id: str, error: BaseException, local_copy: str) -> InputError:
    """Return the error for what the hub did not provide: why, and what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{hub_id.partition(' ')[0]}"
    causes = [cause for cause in (error, error.__cause__, error.__context__) if cause is not None]

    def has(kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    why = first_line(error)
    remedy = "check the network, log in with `hf auth login` and accept the license on its page if it is gated"
    if has(errors.GatedRepoError):
        why = "it is gated, and no account that has accepted its license is logged in"
        remedy = f"accept the license on {page}, log in with `hf auth login`"
    elif has(errors.RevisionNotFoundError):
        why, remedy = "it has no such revision", f"choose a commit of {page}/commits"
    elif has(errors.RepositoryNotFoundError):
        why, remedy = f"there is no such {kind}, or it is private", f"look at {page}, log in with `hf auth login`"
    return InputError(
        f"{kind} {hub_id}: could not be read from the hub ({why}); {remedy}, or give a local copy with {local_copy}"
    )
