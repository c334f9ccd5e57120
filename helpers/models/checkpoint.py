"""Networks of checkpoints, and weights for release: safetensors in half precision, with config and training ids in the
header. Unlike a checkpoint, such a file holds no optimizer state, and reading it cannot run code.
"""

import json
import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from helpers.colab import keep
from helpers.config import display_path
from helpers.data.files import DataError, atomic_file
from helpers.data.store import Store
from helpers.data.tables import LICENSES
from helpers.models.checks import check_weights, load_file
from helpers.models.device import best_device

Network, Config = TypeVar("Network", bound=nn.Module), TypeVar("Config")
MAX_IDS_BYTES = 2**26  # of the unpacked ids of training images
NUMBER = (int, float)
# What a checkpoint to resume from holds, see `TrainState.state_dict`.
STATE_TYPES = {"step": int, "train_config": dict, "history": dict, "loss_sums": dict, "loss_count": int,
               "stopped": bool, "seconds": NUMBER, "networks": dict, "optimizers": dict, "scaler": dict}  # fmt: skip


def write_state(state: dict, out: Path) -> None:
    """Write `checkpoint.pt` and `history.json` by `atomic_file`: a kill or a power failure leaves the previous files
    whole. Raises `OSError` if the disk is full."""
    with atomic_file(out / "checkpoint.pt", sync=True) as temporary:
        torch.save(state, temporary)
    with atomic_file(out / "history.json", sync=True) as temporary:
        temporary.write_text(json.dumps(state["history"]), encoding="utf-8")
    for name in ("checkpoint.pt", "history.json"):
        keep(out / name)


def read_state(path: Path, config: dict, train_config: dict) -> dict:
    """A checkpoint to resume from. Raises `DataError` if it is damaged, `ValueError` if it has another config."""
    try:
        saved = read_checkpoint(path)
        _check_state(saved, path)
    except DataError as error:
        raise DataError(f"{error}: delete it or choose another folder") from error
    # `steps` may be raised to train longer; these may not change.
    fixed = ("batch_size", "seed", "ema_nimg")
    given = config | {k: train_config[k] for k in fixed}
    there = saved["config"] | {k: saved["train_config"].get(k) for k in fixed}
    if differing := [f"{k} is {there.get(k)!r} there, {v!r} here" for k, v in given.items() if there.get(k) != v]:
        raise ValueError(f"{path} has another config ({'; '.join(differing)}): choose another folder or delete it")
    return saved


def _check_state(saved: dict, path: Path) -> None:
    """Raise `DataError` if a part that only resuming needs is missing or of another type."""
    right = all(isinstance(saved.get(name), kind) for name, kind in STATE_TYPES.items())
    right = right and all(0 <= saved[name] < math.inf for name in ("step", "loss_count", "seconds"))
    right = right and "step" in saved["history"] and all(isinstance(v, list) for v in saved["history"].values())
    numbers = [*saved["loss_sums"].values(), *chain(*saved["history"].values())] if right else [None]
    if not all(isinstance(number, NUMBER) for number in numbers):
        raise DataError(f"{display_path(path)} was written by another version or program")


def export_weights(
    checkpoint: str | Path, file: str | Path, all_networks: bool = False, license_name: str | None = None
) -> Path:
    """Write the inference weights of a checkpoint (best on val, or the EMA generator) to `file`; returns its path.

    `all_networks`: those that a GAN needs to train on, with the EMA weights of the generator and without the feature
    network, which every discriminator has. `license_name`: stored in the file's header; by default those that the
    checkpoint says of its training data.

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
    licenses = extra_state.pop("licenses", [])
    license_name = license_name or "; ".join(licenses)
    license_entry = {"license": license_name} if license_name else {}
    header = json.dumps({"config": saved["config"], "extra_state": extra_state} | license_entry)
    with atomic_file(file) as temporary:
        save_file(half, temporary, {"checkpoint": header})  # one key: several would be written in random order
    return file


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint, or a released file as a dict with the same keys `config`, `extra_state` and `ema_models`, and
    `networks` if it has all of them.

    Weights of released files are converted to float32. Raises `DataError` if the file is damaged, is of another
    program, or has weights that are not finite.
    """
    saved = _read_released(path) if Path(path).suffix == ".safetensors" else load_file(path)
    parts = ("config", "extra_state", "ema_models")
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), dict) for part in parts):
        raise DataError(f"{display_path(path)} is not a checkpoint of this version")
    try:
        for weights in _all_weights(saved):
            check_weights(weights)
    except ValueError as error:
        raise DataError(f"{display_path(path)} cannot be used: {error}") from error
    for name in ("trained_on", "licenses"):
        texts = saved["extra_state"].get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{display_path(path)} cannot be used: its {name} is not a list of texts")
    return saved


def _all_weights(saved: dict) -> Iterable[Any]:
    """State dicts of every network in a checkpoint. Raises `ValueError` if `networks` is no dict."""
    if not isinstance(networks := saved.get("networks", {}), dict):
        raise ValueError("its networks have no names")
    return [*saved["ema_models"].values(), *networks.values(), saved["extra_state"].get("best_state_dict", {})]


def _read_released(path: str | Path) -> dict:
    """A released file as a dict like a checkpoint's. Raises `DataError` if it is none."""
    try:
        with safe_open(path, "pt") as file:
            header, names = json.loads((file.metadata() or {})["checkpoint"]), list(file.keys())
            config, extra_state = header["config"], header["extra_state"]
            tensors = zip(names, map(file.get_tensor, names), strict=True)
            weights = {name: w.float() if w.is_floating_point() else w for name, w in tensors}
        extra_state["trained_on"] = unpack_ids(extra_state["trained_on"])
        if license_name := header.get("license"):
            extra_state["licenses"] = license_name.split("; ")
        saved = {"config": config, "extra_state": extra_state}
        if any("/" in name for name in weights):
            networks = {}
            for name, weight in weights.items():
                network, key = name.split("/", 1)
                networks.setdefault(network, {})[key] = weight
            return saved | {"ema_models": {"generator": networks["generator"]}, "networks": networks}
    except Exception as error:  # a foreign header has any content
        raise DataError(f"{display_path(path)} is not a file of released weights ({error})"[:300]) from error
    extra_state["best_state_dict"] = weights
    return saved | {"ema_models": {"generator": weights}}


def read_network(
    path: str | Path, what: str, config_class: type[Config], build: Callable[[dict, Config], Network]
) -> tuple[Network, Config]:
    """The network of a checkpoint or released file, in eval mode on the best device, and its config.

    `build(saved, config)` makes the network and loads its weights. Raises `DataError` if the file is not `what`.
    """
    saved = read_checkpoint(path)
    if saved["extra_state"].get("best_state_dict") == {}:
        raise DataError(f"{display_path(path)} was stopped before its first validation: go on with its training")
    try:
        fields = {name: value for name, value in saved["config"].items() if name != "steps"}
        config = config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
        network = build(saved, config)
    except Exception as error:  # a foreign config has any content
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{display_path(path)} is not {what} of this version ({reason})") from error
    return network.to(best_device()).eval().requires_grad_(False), config


def training_data(store: Store, rows: np.ndarray, before: dict | None = None) -> dict:
    """What a checkpoint's `extra_state` says about its data: `trained_on`, the identities of the lesions at `rows`, and
    `licenses`, both with those of `before`, the `extra_state` that the training starts from; and `data`, the
    fingerprint of the store. A license that is not known is left out."""
    trained_on, licenses = ((before or {}).get(name, []) for name in ("trained_on", "licenses"))
    trained_on = set(trained_on).union(*(store.identities[row] for row in rows))
    licenses = dict.fromkeys([*licenses, *filter(None, [LICENSES.get(store.name)])])
    return {"trained_on": sorted(trained_on), "data": store.fingerprint, "licenses": list(licenses)}


def check_held_out(path: str | Path, store: Store, rows: np.ndarray) -> dict:
    """The `extra_state` of a checkpoint or released file. Raises `DataError` if its weights were trained on lesions of
    the store other than at `rows`."""
    extra_state = read_checkpoint(path)["extra_state"]
    allowed = set().union(*(store.identities[row] for row in rows))
    if leaked := len(store.rows_in(set(extra_state.get("trained_on", [])) - allowed)):
        raise DataError(
            f"{display_path(path)} was trained on the lesions of {leaked} images that are held out in {store.name}"
        )
    return extra_state


def pack_ids(ids: list[str]) -> str:
    """Compress image ids to ASCII text, 24 % of their length for the 1,973 ids of ISIC 2017."""
    return b64encode(zlib.compress("\n".join(ids).encode(), 9)).decode()


def unpack_ids(text: str) -> list[str]:
    """The ids of `pack_ids`. Raises `ValueError` if they take over `MAX_IDS_BYTES`."""
    unpacker = zlib.decompressobj()
    ids = unpacker.decompress(b64decode(text), MAX_IDS_BYTES)
    if not unpacker.eof:
        raise ValueError(f"its training images take over {MAX_IDS_BYTES // 2**20} MiB or are cut off")
    return ids.decode().splitlines()
