"""Weights of another training as the start of a new one; of a GAN's also with other classes or at half the image size
(progressive growing: Karras et al., arXiv 1710.10196)."""

import re
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from helpers.config import display_path
from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.models.checkpoint import check_held_out, read_checkpoint, training_data
from helpers.models.checks import check_class_names
from helpers.models.trainer import TrainTask

# Layers that a checkpoint to initialize from may lack, and those that it may not have if the config lacks them.
NEW_LAYERS = r"feature_network\.|artifact_rates|(heads|artifact_embed|noise_in|line_in|code_in|code_out)\."
CONDITIONING = r"(^|.*\.)(artifact_embed|noise_in|code_in|code_out)\."
# Layers of the finest level, which a checkpoint of half the size lacks.
GROWN_LAYERS = r"down\.0\.|(up|reduce)\.\d+\."
CLASS_ROWS = r"(.*\.)?(class_embed\.weight|artifact_rates)$"  # weights and buffers with a row per class


def start_from(
    task: TrainTask, init_from: str | Path | None, store: Store, rows: np.ndarray, allowed: np.ndarray | None = None
) -> None:
    """Initialize a task from a checkpoint or released file, if given, by its `init_from`, and record in its
    `extra_state` the training images of the file and those at `rows`, and their licenses.

    Raises `DataError` if the file was trained on lesions of the store other than at the rows `allowed`, by default the
    training split, `ValueError` if it does not fit the task.
    """
    before = {}
    if init_from:
        task.init_from(init_from)
        before = check_held_out(init_from, store, store.rows("train") if allowed is None else allowed)
    task.extra_state |= training_data(store, rows, before)


def init_networks(networks: dict[str, nn.Module], config: dict, checkpoint: str | Path) -> list[str]:
    """Load generator, encoder and discriminator from a checkpoint (`NEW_LAYERS` may be missing), from a released file
    the generator only. From half the size of a `grown_config`, all layers but those of the finest level. Classes that
    the file does not have keep their new embedding. `config`: that of `networks`, as a dict. Returns the ids of the
    images that the weights were trained on.

    Raises `DataError` if the file is not a GAN's, `ValueError` if its sketch style or sizes differ.
    """
    path = display_path(checkpoint)
    saved = read_checkpoint(checkpoint)
    try:
        if (style := saved["config"]["style"]) != config["style"]:
            raise ValueError(f"{path} has style {style!r}, the config says {config['style']!r}")
        classes = saved["config"]["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"{path} has classes that are no list of names")
        try:
            check_class_names(tuple(classes))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        grows = bool(config["level_channels"]) and saved["config"]["size"] * 2 == config["size"]
        saved_networks = saved.get("networks", saved["ema_models"])
        if "generator" not in saved_networks:
            raise KeyError("it has no generator")
        for name, weights in saved_networks.items():
            weights = grow_weights(weights) if grows and name != "encoder" else weights
            weights = match_classes(weights, networks[name], classes, config["classes"])
            unexpected = _load(networks[name], weights, f"{NEW_LAYERS}|{GROWN_LAYERS}" if grows else NEW_LAYERS, name)
            if dropped := [key for key in unexpected if re.match(CONDITIONING, key)]:
                raise ValueError(f"{path} has {dropped[0]} in its {name}, the config has no such layer")
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} has networks of other sizes ({reason})") from error
    except (LookupError, TypeError) as error:
        raise DataError(f"{path} is not a checkpoint of `train cgan` ({error})"[:400]) from error
    return saved.get("extra_state", {}).get("trained_on", [])


def _load(network: nn.Module, weights: dict[str, Tensor], may_lack: str, name: str) -> list[str]:
    """Load weights, except of layers that match `may_lack`; returns the keys that the network does not have."""
    missing, unexpected = network.load_state_dict(weights, strict=False)
    for key in missing:  # flags that the file does not know have no effect at first
        if key.endswith("artifact_embed.weight"):
            nn.init.zeros_(network.get_parameter(key))
    if absent := [key for key in missing if not re.match(may_lack, key)]:
        raise KeyError(f"{absent[0]} is missing in its {name}")
    return unexpected


def match_classes(
    weights: dict[str, Tensor], network: nn.Module, saved_classes: list[str], classes: list[str]
) -> dict[str, Tensor]:
    """Weights with the rows of the classes of `network` (K, ...): those of equal names from `weights`, the others from
    `network`."""
    if saved_classes == classes:
        return weights
    own, shared = network.state_dict(), [name for name in classes if name in saved_classes]
    matched = {key: own[key].clone() for key in weights if re.match(CLASS_ROWS, key) and key in own}
    for key, rows in matched.items():
        rows[[classes.index(name) for name in shared]] = weights[key][[saved_classes.index(name) for name in shared]]
    return weights | matched


def grow_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a generator or discriminator, renamed for twice the image size: levels that are counted from the fine
    end move by one."""

    def rename(key: str) -> str:
        return re.sub(r"^(down|line_in)\.(\d+)", lambda match: f"{match[1]}.{int(match[2]) + 1}", key)

    return {rename(key): weight for key, weight in weights.items()}
