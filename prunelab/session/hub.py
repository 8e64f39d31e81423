"""The Hugging Face Hub, which takes the folder of an export. `huggingface_hub` does the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prunelab.errors import InvalidValue, MissingPackage, PruneLabError


def pusher(repo_id: str, private: bool | None) -> Callable[[Path], str]:
    """A function that uploads a folder to the repository `repo_id` and returns its address.

    Raises `MissingPackage` or `InvalidValue` before anything is done, and `PruneLabError` where the
    Hub does not take the folder.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise MissingPackage(
            f"push_to_hub needs huggingface_hub, and {error.name} is missing: "
            "pip install 'prunelab[hub]'."
        ) from error
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidValue(
            f"repo_id is 'user/name', or the name of a repository of your own, not {repo_id!r}: "
            f"{error}"
        ) from None

    def push(folder: Path) -> str:
        try:
            api = HfApi()
            there = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=there.repo_id, folder_path=folder,
                commit_message="A network pruned with prunelab",
            )  # fmt: skip
        except Exception as error:  # of the network, the disk, the Hub: each has its own kinds
            said = next((line for line in str(error).splitlines() if line.strip()), "")
            raise PruneLabError(
                f"The Hub did not take {repo_id} ({type(error).__name__}: {said}). Log in by "
                "`hf auth login`, or export a folder, which huggingface_hub.upload_folder takes."
            ) from error
        return str(there.url)

    return push
