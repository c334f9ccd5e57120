import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from helpers.config import ROOT
from helpers.data.files import DataError
from helpers.models import hub
from helpers.models.hub import from_pretrained, method_of, push_to_hub

RELEASED = ROOT / "data" / "released"


@pytest.mark.parametrize("method", ["cgan", "dcgan", "segmenter", "classifier", "artifacts"])
def test_from_pretrained_recognizes_every_released_file(method):
    file = RELEASED / f"{method}.safetensors"
    assert method_of(file) == method
    network, config = from_pretrained(file)
    expected, expected_config = hub.LOADERS[method](file)
    assert type(network) is type(expected) and config == expected_config and not network.training
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def fake_hub(monkeypatch, files: list[str]) -> list[str]:
    """A hub whose repository has copies of the released segmenter under these names; returns what is asked for."""
    asked = []

    def download(repo_id: str, name: str) -> str:
        asked.append(f"{repo_id}/{name}")
        return str(RELEASED / "segmenter.safetensors")

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo_id: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_from_pretrained_takes_the_file_of_a_repository(monkeypatch):
    asked = fake_hub(monkeypatch, ["README.md", "segmenter.safetensors"])
    network, _ = from_pretrained("ann/lesions")
    from_pretrained("ann/lesions/other.safetensors")
    assert type(network).__name__ == "Segmenter"
    assert asked == ["ann/lesions/segmenter.safetensors", "ann/lesions/other.safetensors"]


def test_from_pretrained_of_a_repository_with_two_files_asks_for_one(monkeypatch):
    fake_hub(monkeypatch, ["a.safetensors", "b.safetensors"])
    with pytest.raises(DataError, match="name one"):
        from_pretrained("ann/lesions")


def test_from_pretrained_without_connection_or_file_says_so(monkeypatch, tmp_path):
    def offline(*args):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.list_repo_files", offline)
    with pytest.raises(DataError, match="neither a file nor available on the hub"):
        from_pretrained("ann/lesions")
    with pytest.raises(DataError, match="there is no file"):
        from_pretrained(tmp_path / "absent" / "x.pt")


def test_push_to_hub_uploads_weights_and_card(monkeypatch, tmp_path):
    uploads = {}

    class Api:
        def create_repo(self, repo_id: str, exist_ok: bool) -> None:
            uploads["repo"] = (repo_id, exist_ok)

        def upload_file(self, path_or_fileobj: Path, path_in_repo: str, repo_id: str) -> None:
            uploads[path_in_repo] = Path(path_or_fileobj).name

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    for ending in (".safetensors", ".md"):
        shutil.copy(RELEASED / f"dcgan{ending}", tmp_path)
    assert push_to_hub(tmp_path / "dcgan.safetensors", "ann/lesions") == "https://huggingface.co/ann/lesions"
    assert uploads == {
        "repo": ("ann/lesions", True),
        "dcgan.safetensors": "dcgan.safetensors",
        "README.md": "dcgan.md",
    }


def test_push_to_hub_refuses_a_checkpoint(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(DataError, match="not a released file"):
        push_to_hub(tmp_path / "checkpoint.pt", "ann/lesions")
