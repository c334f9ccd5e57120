"""Networks of checkpoints, and weights for release: safetensors in half precision, with config and training ids in the
header. Unlike a checkpoint, such a file holds no optimizer state, and reading it cannot run code.
"""

import json
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.config import display_path
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.models.device import best_device

Network, Config = TypeVar("Network", bound=nn.Module), TypeVar("Config")


def write_state(state: dict, out: Path) -> None:
    """Write `checkpoint.pt` and `history.json` to temporary names and rename them: a kill leaves the previous files
    intact. Raises `OSError` if the disk is full."""
    temporary = out / "checkpoint.pt.part"
    try:
        torch.save(state, temporary)
    except RuntimeError as error:  # PyTorch's error for a full disk
        raise OSError(f"cannot write {temporary}; the previous checkpoint is kept ({error})") from error
    os.replace(temporary, out / "checkpoint.pt")
    temporary = out / "history.json.part"
    temporary.write_text(json.dumps(state["history"]))
    os.replace(temporary, out / "history.json")


def read_state(path: Path, config: dict, train_config: dict) -> dict:
    """A checkpoint to resume from. Raises `ValueError` if it is damaged or has another config."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # PyTorch has no list of what it raises for damaged files
        raise ValueError(f"{path} is damaged: delete it or choose another folder") from error
    if not isinstance(saved, dict) or not {"config", "train_config", "ema_models", "seconds"} <= saved.keys():
        raise ValueError(f"{path} was written by another version: delete it or choose another folder")
    # `steps` may be raised to train longer; these may not change.
    fixed = ("batch_size", "seed", "ema_nimg")
    given = config | {k: train_config[k] for k in fixed}
    there = saved["config"] | {k: saved["train_config"].get(k) for k in fixed}
    if differing := [f"{k} is {there.get(k)!r} there, {v!r} here" for k, v in given.items() if there.get(k) != v]:
        raise ValueError(f"{path} has another config ({'; '.join(differing)}): choose another folder or delete it")
    return saved


def export_weights(
    checkpoint: str | Path, file: str | Path, all_networks: bool = False, license_name: str | None = None
) -> Path:
    """Write the inference weights of a checkpoint (best on val, or the EMA generator) to `file`; returns its path.

    `all_networks`: those that a GAN needs to train on, with the EMA weights of the generator and without the feature
    network, which every discriminator has. `license_name`: stored in the file's header.

    Raises `DataError` if the checkpoint has no such weights, or if they are not finite in half precision.
    """
    saved, file = read_checkpoint(checkpoint), Path(file)
    extra_state = dict(saved.get("extra_state", {}))
    weights = extra_state.pop("best_state_dict", None) or saved.get("ema_models", {}).get("generator")
    if all_networks and "generator" not in saved["ema_models"]:
        raise DataError(f"{display_path(checkpoint)} is not a GAN's: only a GAN has other networks to export")
    if all_networks and weights:
        networks = saved["networks"] | saved["ema_models"]
        weights = {f"{name}/{key}": weight for name, network in networks.items() for key, weight in network.items()
                   if not key.startswith("feature_network.")}  # fmt: skip
    if not weights:
        raise DataError(f"{display_path(checkpoint)} has no weights to export: expected those of a `train` command")
    half = {name: (w.half() if w.is_floating_point() else w).contiguous() for name, w in weights.items()}
    if infinite := [name for name, w in half.items() if not w.isfinite().all()]:
        raise DataError(f"{display_path(checkpoint)}: {infinite[0]} is not finite in half precision")
    extra_state["trained_on"] = pack_ids(extra_state.get("trained_on", []))
    license_entry = {"license": license_name} if license_name else {}
    header = json.dumps({"config": saved["config"], "extra_state": extra_state} | license_entry)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    save_file(half, temporary, {"checkpoint": header})  # one key: several would be written in random order
    temporary.replace(file)
    return file


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint, or a released file as a dict with the same keys `config`, `extra_state` and `ema_models`, and
    `networks` if it has all of them.

    Weights of released files are converted to float32. Raises `DataError` for an unreadable released file, and the
    errors of `torch.load` for a checkpoint.
    """
    if Path(path).suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        with safe_open(path, "pt") as file:
            header, names = json.loads((file.metadata() or {})["checkpoint"]), list(file.keys())
            config, extra_state = header["config"], header["extra_state"]
            weights = {name: to_float32(file.get_tensor(name)) for name in names}
        extra_state["trained_on"] = unpack_ids(extra_state["trained_on"])
    except (OSError, SafetensorError, KeyError, ValueError, zlib.error) as error:
        raise DataError(f"{display_path(path)} is not a file of released weights ({error})"[:300]) from error
    if any("/" in name for name in weights):
        networks = {}
        for name, weight in weights.items():
            network, key = name.split("/", 1)
            networks.setdefault(network, {})[key] = weight
        ema_models = {"generator": networks["generator"]}
        return {"config": config, "extra_state": extra_state, "ema_models": ema_models, "networks": networks}
    extra_state["best_state_dict"] = weights
    return {"config": config, "extra_state": extra_state, "ema_models": {"generator": weights}}


def read_network(
    path: str | Path, what: str, config_class: type[Config], build: Callable[[dict, Config], Network]
) -> tuple[Network, Config]:
    """The network of a checkpoint or released file, in eval mode on the best device, and its config.

    `build(saved, config)` makes the network and loads its weights. Raises `DataError` if the file is not `what`.
    """
    try:
        saved = read_checkpoint(path)
        fields = {name: value for name, value in saved["config"].items() if name != "steps"}
        config = config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
        network = build(saved, config)
    except OSError:
        raise
    except Exception as error:  # neither PyTorch nor `build` has a list of what it raises for damaged files
        raise DataError(f"{display_path(path)} is not {what} of this version ({error})"[:400]) from error
    return network.to(best_device()).eval().requires_grad_(False), config


def training_data(store: Store, rows: np.ndarray, before: Iterable[str] = ()) -> dict:
    """What a checkpoint's `extra_state` says about its data: `trained_on`, the identities of the lesions at `rows` and
    those of `before`, and `data`, the fingerprint of the store."""
    trained_on = set(before).union(*(store.identities[row] for row in rows))
    return {"trained_on": sorted(trained_on), "data": store.fingerprint}


def check_held_out(path: str | Path, trained_on: Iterable[str], store: Store, rows: np.ndarray) -> None:
    """Raise `DataError` if weights of the file `path` were `trained_on` lesions of the store other than at `rows`."""
    allowed = set().union(*(store.identities[row] for row in rows))
    if leaked := len(store.rows_in(set(trained_on) - allowed)):
        raise DataError(
            f"{display_path(path)} was trained on the lesions of {leaked} images that are held out in {store.name}"
        )


def pack_ids(ids: list[str]) -> str:
    """Compress image ids to ASCII text, 24 % of their length for the 1,973 ids of ISIC 2017."""
    return b64encode(zlib.compress("\n".join(ids).encode(), 9)).decode()


def unpack_ids(text: str) -> list[str]:
    """The ids of `pack_ids`."""
    return zlib.decompress(b64decode(text)).decode().splitlines()


def to_float32(weight: Tensor) -> Tensor:
    """Floating point tensors as float32; integer tensors unchanged."""
    return weight.float() if weight.is_floating_point() else weight
