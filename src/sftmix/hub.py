"""What is on the Hugging Face hub and what is not, found out before anything heavy is imported."""

from pathlib import Path

from sftmix.errors import InputError

WAIT_SECONDS = 10.0


def looks_local(path: str) -> bool:
    """Whether a model's path means a folder of this machine rather than a hub id."""
    return path.startswith((".", "/", "~")) or Path(path).exists() or path.count("/") != 1


def check_on_hub(kind: str, hub_id: str, revision: str | None, local_copy: str) -> None:
    """Refuse a model or data set that the hub does not give, at once; its client would ask again for a minute.

    What was fetched before needs no network: where a copy is in the client's cache, or HF_HUB_OFFLINE is set, nothing
    is asked.

    Args:
        kind: model or dataset.
        hub_id: owner/name.
        revision: commit.
        local_copy: how to give a local copy instead, for the message.

    Raises:
        InputError: the hub cannot be reached, or has no such id or revision, or wants a login.
    """
    from huggingface_hub import HfApi, constants

    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{hub_id.replace('/', '--')}"
    if constants.HF_HUB_OFFLINE or cached.is_dir():
        return
    try:
        HfApi().repo_info(hub_id, revision=revision, repo_type=kind, timeout=WAIT_SECONDS)
        HfApi().auth_check(hub_id, repo_type=kind)  # a gated one tells about itself, but does not give its files
    except Exception as error:  # the client's and its transport's types, by version
        raise unavailable(kind, hub_id, error, local_copy) from None


def newest_commit(kind: str, hub_id: str, local_copy: str) -> str:
    """The newest commit of a model or data set, 40 hexadecimal digits; without network that of the client's cache.

    Raises:
        InputError: as `check_on_hub`.
    """
    from huggingface_hub import HfApi, constants

    try:
        return str(HfApi().repo_info(hub_id, repo_type=kind, timeout=WAIT_SECONDS).sha)
    except Exception as error:  # the client's and its transport's types, by version
        cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{hub_id.replace('/', '--')}" / "refs" / "main"
        if cached.is_file():
            return cached.read_text().strip()
        raise unavailable(kind, hub_id, error, local_copy) from None


def unavailable(kind: str, hub_id: str, error: Exception, local_copy: str) -> InputError:
    """The one line for something that the hub did not give: why, and what to do."""
    cause = next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)[:160]
    return InputError(
        f"{kind} {hub_id}: could not be read from the hub ({cause}); check the network, log in with `hf auth login` "
        f"and accept the licence on its page if it is gated, or give a local copy with {local_copy}"
    )
