"""Any network from a file or the Hugging Face hub, and released weights to the hub. Needs huggingface_hub, which timm
and gradio install."""

import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from helpers.config import display_path
from helpers.data.files import DataError
from helpers.models.artifacts import ArtifactConfig, load_artifacts
from helpers.models.checkpoint import read_checkpoint
from helpers.models.classifier import ClassifierConfig, load_classifier
from helpers.models.gan import GANConfig, load_gan
from helpers.models.segmenter import SegmenterConfig, load_segmenter
from helpers.models.simclr import SkinConfig, load_skin
from helpers.models.weights import download_timeout

LOADERS = {
    "cgan": load_gan,
    "dcgan": partial(load_gan, sketch=False),
    "segmenter": load_segmenter,
    "classifier": load_classifier,
    "artifacts": load_artifacts,
    "skin": load_skin,
}
CONFIGS = {
    "segmenter": SegmenterConfig,
    "classifier": ClassifierConfig,
    "artifacts": ArtifactConfig,
    "skin": SkinConfig,
    "cgan": GANConfig,
}
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+\.safetensors))?")  # owner/name, or with a file of that repository


def from_pretrained(source: str | Path) -> tuple[nn.Module, Any]:
    """The network of a checkpoint, a released file, or a repository of the hub, `owner/name` or
    `owner/name/FILE.safetensors`, in eval mode on the best device; and its config.

    Without FILE the repository must hold one such file. Raises `DataError` if nothing is found or readable.
    """
    file = Path(source).expanduser()
    if not file.is_file():
        file = _download(str(source))
    return LOADERS[method_of(file)](file)


def method_of(file: str | Path) -> str:
    """Which method's network a file holds, a key of `LOADERS`. Raises `DataError` if it is none of them."""
    config = read_checkpoint(file)["config"]
    known = {method: {field.name for field in fields(config_class)} for method, config_class in CONFIGS.items()}
    fitting = [method for method, names in known.items() if set(config) - {"steps"} <= names]
    if not fitting:
        raise DataError(f"{display_path(file)} holds no network of this package")
    method = min(fitting, key=lambda name: len(known[name]))
    return "dcgan" if config.get("style") == "none" else method


def push_to_hub(file: str | Path, repo_id: str) -> str:
    """Upload a released file, and its card as README.md if there is one, to the repository `repo_id`, which is created
    if absent; returns its address. You must be logged in (`hf auth login`).

    Raises `DataError` if the file is not a released one, or if the hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    file = Path(file)
    if file.suffix != ".safetensors":
        raise DataError(f"{display_path(file)} is not a released file: write one with `python -m helpers export`")
    method_of(file)
    try:
        api, card = HfApi(), file.with_suffix(".md")
        api.create_repo(repo_id, exist_ok=True)
        api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=repo_id)
        if card.is_file():
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id)
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise DataError(f"the hub did not take {file.name} ({error})"[:300]) from error
    return f"https://huggingface.co/{repo_id}"


def _download(source: str) -> Path:
    """The file of a repository of the hub. Raises `DataError` if there is none."""
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import HfHubHTTPError

    match = HUB_ID.fullmatch(source)
    if not match:
        raise DataError(f"there is no file {source}, and it is no repository of the hub (owner/name)")
    repo_id, name = match.groups()
    try:
        with download_timeout():
            if name is None:
                names = [file for file in list_repo_files(repo_id) if file.endswith(".safetensors")]
                if len(names) != 1:
                    raise DataError(f"{repo_id} has {len(names)} .safetensors files: name one, {repo_id}/FILE")
                (name,) = names
            return Path(hf_hub_download(repo_id, name))
    except (HfHubHTTPError, OSError) as error:
        raise DataError(f"{source} is neither a file nor available on the hub ({error})"[:300]) from error
