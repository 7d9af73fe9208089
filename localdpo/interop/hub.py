"""Exports on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from localdpo.core.atomic import MANIFEST
from localdpo.core.errors import UserError
from localdpo.model.load import first_line


def push(folder: Path, repo: str) -> str:
    """Upload an export to a model repository, made private where there is none; its address.

    Raises UserError when the hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo, private=True, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload an export of localdpo",
            # The sizes and digests of this disk's files; the hub has its own.
            ignore_patterns=[MANIFEST],
        )
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"--push {repo}: the hub says: {first_line(error)}; the export stays in {folder} "
            "(`hf auth login` signs in)"
        ) from error
    return str(commit.repo_url)
