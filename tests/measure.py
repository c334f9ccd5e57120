"""How far are drawn images from real ones? `python tests/measure.py CHECKPOINT --split val`, on the data set that
LESION_DATASET names, with the weights `mobilenet_v2-imagenet.pth` from LESION_WEIGHTS_DIR.

Two protocols: `natural`, 1,000 pictures in their natural mix; `balanced`, 55 of every class, or all there are. Sketches
and labels of the split's pictures are drawn and compared with the pictures; the floor compares as many pictures of the
training split with them. Features: MobileNetV2, 224 px, bilinear with antialiasing, mean over the map, 1280 numbers.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchvision.models import mobilenet_v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.config import get_config
from helpers.data.layouts import open_dataset
from helpers.data.store import Store, StoreSettings, prepare
from helpers.models.cgan import draw, load_cgan

MEAN, DEVIATION = ([[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]])


def features(images: np.ndarray, network: torch.nn.Module) -> torch.Tensor:
    """`uint8 (N, H, W, 3)` -> `(N, 1280)`"""
    found = []
    for start in range(0, len(images), 50):
        x = torch.from_numpy(images[start : start + 50]).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            found.append(network.features((x - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).mean(dim=(2, 3)))
    return torch.cat(found)


def distances(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """KID (cubic, over all pictures at once) and Fréchet distance, by torch-fidelity's arithmetic."""
    most = min(len(one), len(other))
    kernel = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    kid = kid_features_to_metric(one, other, kid_subsets=1, kid_subset_size=most, rng_seed=0, verbose=False,
                                 kid_kernel_poly_coef0=1, **kernel)  # fmt: skip
    fd = fid_statistics_to_metric(*map(fid_features_to_statistics, (one, other)), False)
    return kid["kernel_inception_distance_mean"], fd["frechet_inception_distance"]


def choose(store: Store, split: str, protocol: str, like: np.ndarray | None = None) -> np.ndarray:
    """Rows of a split by the protocol; with `like` as many of each class as there."""
    rows = np.random.default_rng(0).permutation(store.rows(split, needs=["sketch", "label"]))
    if protocol == "natural":
        return rows[: 1000 if like is None else len(like)]
    counts = (
        [55] * len(store.classes) if like is None else np.bincount(store.labels[like], minlength=len(store.classes))
    )
    return np.concatenate([rows[store.labels[rows] == k][:n] for k, n in enumerate(counts)])


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("--split", choices=("val", "test"), default="val")
    args.add_argument("--style", choices=("contour", "structure"), default="contour")
    args = args.parse_args()
    network = mobilenet_v2()
    weights = Path(os.environ["LESION_WEIGHTS_DIR"]) / "mobilenet_v2-imagenet.pth"
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    generator, trained = load_cgan(args.checkpoint)
    cfg = get_config("cgan")
    settings = StoreSettings(trained.size, args.style, "square", cfg.seed)
    store = prepare(open_dataset(cfg), cfg.stores, settings, workers=cfg.workers)
    for protocol in ("natural", "balanced"):
        rows = choose(store, args.split, protocol)
        batch = store.batch(rows, ("images", "sketches", "labels"))
        real = features(batch["images"], network)
        drawn = features(draw(generator, batch["sketches"], batch["labels"], seed=0), network)
        others = features(store.batch(choose(store, "train", protocol, rows), ("images",))["images"], network)
        (kid, fd), (floor_kid, floor_fd) = distances(drawn, real), distances(others, real)
        print(f"{protocol}, {args.split}, N {len(rows)} and {len(rows)}:", end=" ")
        print(f"KID-mobilenet_v2 {kid:.4f} (floor {floor_kid:.4f})", end=" ")
        print(f"FD-mobilenet_v2 {fd:.1f} (floor {floor_fd:.1f})", flush=True)


if __name__ == "__main__":
    main()
