"""Can a reader tell generated from real images? `python tests/blind_test.py CHECKPOINT --out FOLDER --seed 0`.

Writes 32 numbered images of the val split to FOLDER/images, half of them generated from the sketches of other images of
the split, with their labels and artifact flags, and FOLDER/key.json with the answers. Give a person or a
vision-language model the images and this prompt, and count the right answers; guessing gives 16:

    Each file 00.png to 31.png shows a dermoscopic image, 128 pixels, enlarged. 16 are photographs, 16 were generated
    by a neural network. Look at every file and sort them: exactly 16 are generated. Answer with the numbers of the 16
    generated ones and one short reason for each.

Needs LESION_DATASET and LESION_DATA_ROOT. Never publish the folder: it has photographs of patients.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.config import get_config  # noqa: E402
from helpers.data.layouts import open_dataset  # noqa: E402
from helpers.data.store import StoreConfig, prepare  # noqa: E402
from helpers.models.gan import load_gan  # noqa: E402
from helpers.models.sampling import sample_batch  # noqa: E402

NUM_IMAGES, ENLARGED = 32, 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cfg, (generator, config) = get_config("cgan"), load_gan(args.checkpoint)
    store_config = StoreConfig(config.size, config.style, "center", cfg.seed)
    store = prepare(open_dataset(cfg), cfg.stores, store_config, workers=cfg.workers)
    rng = np.random.default_rng(args.seed)
    rows = rng.permutation(store.rows("val", needs=["sketch", "label"]))[:NUM_IMAGES]
    batch, half = store.batch(rows), NUM_IMAGES // 2
    sketches = {name: array[half:] for name, array in batch.items()}
    images = np.concatenate([batch["images"][:half], sample_batch(generator, sketches, args.seed)])
    order = rng.permutation(NUM_IMAGES)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(order):
        enlarged = cv2.resize(images[index], (ENLARGED, ENLARGED), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(args.out / "images" / f"{number:02d}.png"), enlarged[..., ::-1])
    generated = [number for number, index in enumerate(order) if index >= half]
    (args.out / "key.json").write_text(json.dumps({"generated": generated}))
    print(f"{NUM_IMAGES} images in {args.out / 'images'}")


if __name__ == "__main__":
    main()
