"""Base of the methods that are validated while they train: segmenter, classifier, artifact detector."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers.models.trainer import TrainTask


class ValidatedTask(TrainTask):
    """One network, whose EMA weights with the best score on val are kept; training stops after `patience` validations
    without improvement.

    A subclass sets the name of the network, `ema_names`, and `score_name`, and defines `evaluate(network)`: a dict of
    the score on `val` under `score_name` and what else to keep with the best weights. `extra_state` has the steps of
    the validations, `checked_at`, the scores under `score_name`, and `best_state_dict`; without `val` these are the
    last EMA weights.
    """

    score_name: str
    patience: float = 8

    def __init__(self, config: Any, steps: int, val: dict[str, np.ndarray] | None, network: nn.Module):
        """`steps`: length of the learning rate schedule. `val`: arrays to validate on; without, nothing stops early."""
        self.config, self.steps, self.val = config, steps, val
        (name,) = self.ema_names
        self.networks = {name: network}
        self.optimizers = {name: torch.optim.AdamW(network.parameters(), config.lr, fused=True)}
        self.extra_state = {"checked_at": [], self.score_name: [], "best_state_dict": {}, "trained_on": []}

    def statistics(self, network: nn.Module) -> dict[str, Tensor]:
        """Further tensors to keep with the best weights, computed for these only."""
        return {}

    def validate(self, ema_models: dict[str, nn.Module], step: int) -> bool:
        """Score the EMA weights and keep them if they are the best so far; True if training should stop."""
        (network,) = ema_models.values()
        if self.val is None:
            self.extra_state["best_state_dict"] = network.state_dict()
            return False
        results, scores = self.evaluate(network), self.extra_state[self.score_name]
        score = results.pop(self.score_name)
        if score > max(scores, default=-1):
            weights = {name: weight.cpu().clone() for name, weight in network.state_dict().items()}
            self.extra_state |= results | {"best_state_dict": weights | self.statistics(network)}
        self.extra_state["checked_at"].append(step)
        scores.append(score)
        return len(scores) - 1 - int(np.argmax(scores)) >= self.patience

    def scores(self) -> dict[str, list]:
        """`checked_at` and the scores, for the history."""
        return {name: self.extra_state[name] for name in ("checked_at", self.score_name)}
