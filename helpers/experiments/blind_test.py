"""Can a reader tell generated from real images?

Give a person or a vision-language model the images of `write_blind_test` and this prompt, and count the right answers;
guessing gives 16:

    Each file 00.png to 31.png shows a dermoscopic image, 128 pixels, enlarged. 16 are photographs, 16 were generated
    by a neural network. Look at every file and sort them: exactly 16 are generated. Answer with the numbers of the 16
    generated ones and one short reason for each.

Never publish the images: half of them are real images of patients.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from helpers.config import Config
from helpers.data.files import DataError, atomic_file, write_image
from helpers.experiments.evaluation import load_generator, open_store

NUM_IMAGES, ENLARGED = 32, 384  # images; pixels per side


def write_blind_test(checkpoint: str | Path, out: str | Path, seed: int, cfg: Config) -> list[int]:
    """Write 32 numbered images of the val split, `out/images/00.png` to `31.png`, and the answers, `out/key.json`.

    Half of them are real, half are generated from the sketches of other images of the split, with their labels and
    artifact flags; `seed` decides the images, their order and the latents. Returns the numbers of the generated ones.
    Raises `DataError` if the file is no generator, has other classes than the data set, or if the split has fewer than
    32 images with sketch and label.
    """
    generate, config = load_generator(checkpoint)
    store = open_store(cfg, config.size, config.style, classes=config.classes)
    rng, half = np.random.default_rng(seed), NUM_IMAGES // 2
    rows = rng.permutation(store.rows("val", needs=["sketch", "label"]))[:NUM_IMAGES]
    if len(rows) < NUM_IMAGES:
        raise DataError(f"{store.name} needs {NUM_IMAGES} val images with sketch and label, got {len(rows)}")
    batch = store.batch(rows)
    sketches = {name: array[half:] for name, array in batch.items()}
    images = np.concatenate([batch["images"][:half], generate(sketches, seed)])
    order = rng.permutation(NUM_IMAGES)
    for number, index in enumerate(order):
        enlarged = cv2.resize(images[index], (ENLARGED, ENLARGED), interpolation=cv2.INTER_CUBIC)
        write_image(Path(out) / "images" / f"{number:02d}.png", enlarged)
    generated = [number for number, index in enumerate(order) if index >= half]
    with atomic_file(Path(out) / "key.json") as temporary:
        temporary.write_text(json.dumps({"generated": generated}), encoding="utf-8")
    return generated
