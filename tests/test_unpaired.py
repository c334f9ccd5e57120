from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.models.gan import GAN, GANConfig, load_gan, train_gan
from helpers.models.sampling import sample
from helpers.models.trainer import TrainConfig
from helpers.models.unpaired import inscribed_circle, otsu_mask, otsu_separability, region_means

SMALL = GANConfig(64, ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"), "contour", base_channels=8)
LESION, SKIN = torch.tensor([-0.2, -0.4, -0.5]), torch.tensor([0.6, 0.4, 0.3])


def two_tone_images(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with a dark square on light skin, and the region of the square."""
    region = torch.zeros(2, 1, size, size)
    region[:, :, 8:20, 8:20] = 1
    return torch.where(region.bool(), LESION[:, None, None], SKIN[:, None, None]), region


def test_region_means_two_tones_are_both_colors():
    means = region_means(*two_tone_images())
    assert torch.allclose(means, torch.stack([LESION, SKIN]).expand(2, 2, 3), atol=1e-3)


def test_otsu_separability_two_tones_depends_on_region_and_noise():
    torch.manual_seed(0)
    image, region = two_tone_images()
    assert otsu_separability(image, region).tolist() == pytest.approx([1, 1], abs=2e-3)
    assert otsu_separability(image, region.roll(12, dims=3)).max() < 0.1, "other position"
    assert otsu_separability(image, torch.zeros_like(region)).max() < 1e-3, "empty region"
    fraction = 144 / 32**2  # of the image inside the square
    between, noise = 3 * fraction * (1 - fraction) * 0.8**2, 3 * 0.4**2
    noisy = otsu_separability(image + 0.4 * torch.randn(2, 3, 32, 32), region)
    assert noisy.tolist() == pytest.approx([between / (between + noise)] * 2, abs=0.04)


def test_otsu_mask_dark_square_is_found():
    torch.manual_seed(0)
    image, region = two_tone_images()
    assert torch.equal(otsu_mask(image + 0.1 * torch.randn_like(image)), region)
    assert otsu_mask(torch.zeros(1, 3, 8, 8)).shape == (1, 1, 8, 8), "an image of one color"


def test_inscribed_circle_disc_is_kept_and_corners_are_dropped():
    axis = torch.linspace(-1, 1, 33)
    inside = (axis[:, None].square() + axis.square() <= 1).float()
    pixels = inscribed_circle(inside.expand(2, 3, 33, 33))
    assert pixels.shape == (2, 3, int(inside.sum()), 1) and (pixels == 1).all()


# ---------------------------------------------------------------------------------------------------------- training


def two_tone_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Images with a dark square at another position than their sketch's, and the square of the sketch."""
    square = torch.zeros(2, 1, 64, 64)
    square[:, :, 20:44, 20:44] = 1
    sketches = square.clone()
    sketches[:, :, 22:42, 22:42] = 0
    images = 0.8 - square.roll(-12, dims=3) + 0.05 * torch.randn(2, 3, 64, 64)
    return {"images": images, "sketches": sketches, "labels": torch.arange(2)}, square


def test_train_unpaired_records_sketch_loss_and_loads_like_paired(phantom_store, tmp_path):
    config = replace(SMALL, paired=False)
    history = train_gan(phantom_store, config, tmp_path, TrainConfig(2, batch_size=4, log_every=1))
    assert history["sketch"][0] > 0 and all(np.isfinite(history["l1"]))
    generator, loaded = load_gan(tmp_path / "checkpoint.pt")
    assert loaded == config and sample(generator, phantom_store.sketches[:2], [0, 1]).shape == (2, 64, 64, 3)


def test_train_unpaired_sketches_of_wrong_kind_raise(phantom_store, tmp_path):
    lines = np.full((2, 64, 64), 255, np.uint8)
    for paired, sketches in ((True, lines), (False, lines[:, :32, :32]), (False, 0 * lines)):
        with pytest.raises(ValueError, match=r"unpaired sketches need paired=False, size \(64, 64\) and lines; got"):
            train_gan(phantom_store, replace(SMALL, paired=paired), tmp_path, TrainConfig(1), sketches=sketches)


def test_unpaired_reconstruction_losses_dark_region_off_the_sketch_is_penalized():
    torch.manual_seed(0)
    task, (batch, square) = GAN(replace(SMALL, paired=False)), two_tone_batch()
    on_sketch, off_sketch = ((0.8 - s).expand(2, 3, 64, 64) for s in (square, square.roll(12, dims=2)))
    low, high = (task.reconstruction_losses(fake, batch, num_encoded=1) for fake in (on_sketch, off_sketch))
    assert low["sketch"] == 0 and high["sketch"] > 0.3
    assert low["l1"] < 0.05 and high["l1"] > 0.3, "region colors of the real image, wherever its dark region lies"


def test_unpaired_discriminator_gets_blank_sketches():
    torch.manual_seed(0)
    (batch, _), blank = two_tone_batch(), torch.zeros(2, 2, 64, 64)
    assert torch.equal(GAN(replace(SMALL, paired=False)).sketch_maps(batch), blank)
    assert GAN(SMALL).sketch_maps(batch).sum(dim=(2, 3)).min() > 0


def test_unpaired_sketch_loss_wants_the_darker_tone_inside():
    task = GAN(replace(SMALL, paired=False))
    sketches = torch.zeros(2, 1, 64, 64)
    sketches[..., 16, 16:48] = sketches[..., 47, 16:48] = sketches[..., 16:48, 16] = sketches[..., 16:48, 47] = 1
    dark_inside = torch.full((2, 3, 64, 64), 0.5)
    dark_inside[..., 16:48, 16:48] = -0.5
    batch = {"images": dark_inside, "sketches": sketches}
    losses = [float(task.reconstruction_losses(fake, batch, 1)["sketch"]) for fake in (dark_inside, -dark_inside)]
    assert losses[0] == 0 and losses[1] > task.config.separation_target
