from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import circle

from helpers.data.store import UNKNOWN
from helpers.models.gan import GANConfig, dcgan_config
from helpers.models.networks import BaseGenerator, random_noise
from helpers.models.sampling import (
    make_preview,
    mixed_noise,
    read_previews,
    sample,
    sample_batch,
    sample_variations,
    save_preview,
    seeded_noise,
    slerp,
)

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SMALL = GANConfig(64, CLASSES, base_channels=8)
CONDITIONED = GANConfig(64, CLASSES, base_channels=8, noise_channels=4, projected=True)
HAIR = np.array([[0, 1, 0, 0, 0, 0, 0]])


def conditioned_generator(seed: int = 0) -> BaseGenerator:
    """An untrained generator."""
    torch.manual_seed(seed)
    return CONDITIONED.generator().eval().requires_grad_(False)


def test_sample_same_seed_repeats_and_latent_fixes_the_noise():
    torch.manual_seed(0)
    generator = SMALL.generator().eval()
    sketches, labels = np.zeros((5, 64, 64), np.uint8), [0, 1, 2, 3, 4]
    sketches[:, 20:40, 20:22] = 255
    random_state = torch.random.get_rng_state()
    images = sample(generator, sketches, labels, seed=3, batch_size=2)
    assert images.shape == (5, 64, 64, 3) and images.dtype == np.uint8
    assert np.array_equal(images, sample(generator, sketches, labels, seed=3, batch_size=2))
    assert not np.array_equal(images, sample(generator, sketches, labels, seed=4, batch_size=2))
    assert torch.equal(random_state, torch.random.get_rng_state()), "the global random state is restored"
    equal = sample(generator, sketches[:2], [0, 0], latent=torch.zeros(2, 16))
    assert np.array_equal(equal[0], equal[1]), "the same per-pixel noise"
    assert not np.array_equal(equal, sample(generator, sketches[:2], [0, 0], latent=torch.zeros(2, 16), seed=1))
    different = sample(generator, sketches[:2], [0, 0], latent=torch.tensor([[-2.0], [2.0]]).expand(2, 16))
    assert not np.array_equal(different[0], different[1])


def test_sample_wrong_number_or_size_raises():
    generator, sketches = SMALL.generator().eval(), np.zeros((5, 64, 64), np.uint8)
    with pytest.raises(ValueError, match="got 5 sketches, 2 labels, no latents"):
        sample(generator, sketches, [0, 1])
    with pytest.raises(ValueError, match="got 5 sketches, 5 labels, 1 latents"):
        sample(generator, sketches, [0] * 5, latent=torch.zeros(1, 16))
    with pytest.raises(ValueError, match=r"sketches must be \(64, 64\) pixels, got \(32, 32\)"):
        sample(generator, sketches[:, :32, :32], [0] * 5)


def test_sample_artifacts_change_the_image_and_wrong_ones_raise():
    generator = conditioned_generator()
    none, hair = sample(generator, circle()[None], [1]), sample(generator, circle()[None], [1], artifacts=HAIR)
    assert np.array_equal(none, sample(generator, circle()[None], [1], artifacts=0 * HAIR))
    assert not np.array_equal(none, hair)
    with pytest.raises(ValueError, match=r"artifacts must be \(1, 7\), got \(2, 7\)"):
        sample(generator, circle()[None], [1], artifacts=HAIR.repeat(2, axis=0))
    plain = replace(CONDITIONED, artifacts=False).generator().eval().requires_grad_(False)
    with pytest.raises(ValueError, match="was not conditioned on artifacts"):
        sample(plain, circle()[None], [1], artifacts=HAIR)


def test_sample_batch_uses_the_artifacts_of_the_images_and_none_where_they_are_unknown():
    generator = conditioned_generator()
    batch = {"sketches": np.stack([circle()] * 2), "labels": np.array([1, 1]), "artifacts": HAIR.repeat(2, axis=0)}
    batch["artifacts"][1] = UNKNOWN
    expected = sample(generator, batch["sketches"], [1, 1], seed=2, artifacts=np.concatenate([HAIR, 0 * HAIR]))
    assert np.array_equal(sample_batch(generator, batch, seed=2), expected)
    plain = replace(CONDITIONED, artifacts=False).generator().eval().requires_grad_(False)
    assert np.array_equal(sample_batch(plain, batch), sample(plain, batch["sketches"], [1, 1]))


def test_sample_without_sketch_label_latent_and_seed_change_the_image():
    torch.manual_seed(0)
    generator = dcgan_config(64, classes=CLASSES, base_channels=8).generator().eval()
    latent = torch.randn(1, 32)
    image = sample(generator, None, [1], latent=latent)
    assert image.shape == (1, 64, 64, 3) and image.dtype == np.uint8
    assert np.array_equal(image, sample(generator, None, [1], latent=latent))
    for other in (sample(generator, None, [2], latent=latent), sample(generator, None, [1], latent=-latent)):
        assert np.abs(image.astype(int) - other).mean() > 0.5
    assert not np.array_equal(sample(generator, None, [1], seed=0), sample(generator, None, [1], seed=1))
    with pytest.raises(ValueError, match="got no sketches, 2 labels, 1 latents"):
        sample(generator, None, [1, 2], latent=latent)


def test_slerp_intermediate_latents_keep_their_norm():
    z0, z1 = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    latents = slerp(z0, z1, 5)
    assert torch.allclose(latents[0], z0, atol=1e-4) and torch.allclose(latents[-1], z1, atol=1e-4)
    assert (latents.norm(dim=1) > 0.9 * min(z0.norm(), z1.norm())).all()
    assert latents[2].norm() > 1.2 * ((z0 + z1) / 2).norm(), "longer than half way on a straight line"


def test_make_preview_has_every_label_and_two_more_latents_per_sketch(phantom_store):
    preview = make_preview(phantom_store, SMALL.generator(), seed=0, num_sketches=3)
    assert preview["sketches"].shape == (27, 1, 64, 64) and preview["columns"] == 9
    assert preview["labels"][:7].tolist() == list(range(7))
    assert torch.equal(preview["sketches"][0], preview["sketches"][8])
    assert torch.equal(preview["latents"][0], preview["latents"][6])
    assert not torch.equal(preview["latents"][0], preview["latents"][7])


def test_make_preview_without_sketch_has_six_latents_per_label(phantom_store):
    generator = dcgan_config(64, classes=CLASSES, base_channels=8).generator()
    preview = make_preview(phantom_store, generator, seed=0)
    assert preview["columns"] == 6 and preview["labels"].tolist() == np.arange(7).repeat(6).tolist()
    assert torch.equal(preview["latents"][:6], preview["latents"][6:12]) and not preview["sketches"].any()


def test_sample_without_sketches_from_a_generator_that_needs_them_raises():
    with pytest.raises(ValueError, match="needs sketches, got None"):
        sample(SMALL.generator().eval(), None, [0])


@pytest.mark.parametrize("config", [SMALL, CONDITIONED])
def test_sample_variations_equals_sample_of_every_latent_and_leaves_the_random_state(config):
    torch.manual_seed(0)
    generator, latents = config.generator().eval(), torch.randn(3, config.z_dim)
    state = torch.random.get_rng_state()
    images = sample_variations(generator, circle(), 2, latents, [5, 5, 9])
    assert torch.equal(torch.random.get_rng_state(), state)
    for image, latent, seed in zip(images, latents.split(1), (5, 5, 9), strict=True):
        assert np.array_equal(image, sample(generator, circle()[None], [2], seed, latent)[0])


def variations(generator: BaseGenerator, structure: float = 1.0, seeds=(5, 6, 9), **kwargs) -> np.ndarray:
    """Three images that differ in their random maps only."""
    latents = torch.zeros(len(seeds), generator.z_dim)
    return sample_variations(generator, circle(), 2, latents, list(seeds), structure, **kwargs)


def test_sample_variations_structure_zero_repeats_the_first_image_and_more_moves_away_from_it():
    generator = conditioned_generator()
    full, none = variations(generator), variations(generator, 0.0)
    assert all(np.array_equal(image, full[0]) for image in none)
    strengths = (0.2, 0.5, 0.8, 1.0)
    images = [variations(generator, s).astype(int) for s in strengths]
    assert all(np.array_equal(image[0], full[0]) for image in images), "the first image has its own maps"
    distances = [np.abs(image[1:] - full[0]).mean() for image in images]
    assert distances[0] > 0 and distances == sorted(distances)
    assert np.array_equal(variations(generator, 0.5, seeds=(5, 5))[1], full[0]), "equal seeds have equal maps"


def test_mixed_noise_is_standard_normal_and_correlated_with_its_own_maps():
    x = torch.zeros(1, 1, 200, 200)
    own, first = (seeded_noise(seed, "cpu")(x, 2) for seed in (1, 2))
    mixed = mixed_noise(lambda *_: first, lambda *_: own, 0.6)(x, 2)
    assert mixed.std().item() == pytest.approx(1, abs=0.02)
    assert (mixed * own).mean().item() == pytest.approx(0.6, abs=0.02)
    assert (mixed * first).mean().item() == pytest.approx(0.8, abs=0.02)
    torch.manual_seed(1)
    assert torch.equal(own, random_noise(x, 2))


def test_sample_variations_artifacts_are_those_of_sample():
    generator, latent = conditioned_generator(), torch.zeros(1, CONDITIONED.z_dim)
    (image,) = sample_variations(generator, circle(), 2, latent, [5], artifacts=HAIR[0])
    assert np.array_equal(image, sample(generator, circle()[None], [2], 5, latent, artifacts=HAIR)[0])
    assert not np.array_equal(image, sample(generator, circle()[None], [2], 5, latent)[0])


def test_sample_variations_keep_returns_the_kept_region_exactly_and_changes_the_rest():
    generator, keep = conditioned_generator(), np.zeros((64, 64), np.uint8)
    keep[:, :32] = 1
    for structure in (0.0, 0.5, 1.0):
        original = variations(generator, structure)
        changed = variations(generator, structure, keep=keep, new_seed=77)
        assert np.array_equal(changed[:, :, :32], original[:, :, :32])
        assert np.abs(changed[:, :, 36:].astype(int) - original[:, :, 36:]).mean() > 1
        assert np.array_equal(changed, variations(generator, structure, keep=keep, new_seed=77))
        assert not np.array_equal(changed, variations(generator, structure, keep=keep, new_seed=78))
        assert np.array_equal(original, variations(generator, structure, keep=np.ones_like(keep), new_seed=77))


def test_sample_variations_keep_next_to_the_border_is_nearer_to_the_kept_image_than_another_image():
    generator, keep = conditioned_generator(), np.zeros((64, 64), np.uint8)
    keep[:, :32] = 1
    seeds = range(8)
    original, other = (variations(generator, seeds=[k + first for k in seeds]).astype(int) for first in (0, 100))
    joined = variations(generator, seeds=seeds, keep=keep, new_seed=100)
    to_joined, to_other = (np.abs(images[:, :, 32:36] - original[:, :, 32:36]).mean() for images in (joined, other))
    assert to_joined < 0.95 * to_other, "it sees the kept random maps, so that both regions fit"


def test_sample_variations_unusable_arguments_raise():
    generator = conditioned_generator()
    for structure in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="structure must be from 0 to 1"):
            variations(generator, structure)
    with pytest.raises(ValueError, match=r"artifacts must be \(1, 7\), got \(1, 3\)"):
        variations(generator, artifacts=HAIR[0, :3])
    with pytest.raises(ValueError, match="keep must have the shape of the images"):
        variations(generator, keep=np.ones((32, 32)))
    plain = replace(CONDITIONED, artifacts=False).generator().eval().requires_grad_(False)
    with pytest.raises(ValueError, match="was not conditioned on artifacts"):
        variations(plain, artifacts=HAIR[0])


def test_read_previews_returns_the_images_that_were_saved(tmp_path):
    generator, steps = conditioned_generator(), (0, 12, 100)
    preview = {
        "sketches": torch.zeros(6, 1, 64, 64),
        "labels": torch.arange(6),
        "latents": torch.zeros(6, 16),
        "columns": 3,
    }
    for step in steps:
        save_preview(generator, preview, tmp_path / f"grid-{step:06d}.png")
    grids = read_previews(tmp_path, 64)
    assert list(grids) == [0, 12, 100] and grids[0].shape == (2, 3, 64, 64, 3)
    torch.manual_seed(0)
    images = generator(*(preview[k] for k in ("sketches", "labels", "latents")), torch.zeros(6, 7))
    expected = ((images + 1) * 127.5).permute(0, 2, 3, 1).reshape(2, 3, 64, 64, 3).numpy()
    assert np.abs(grids[12] - expected).max() <= 1, "rounded, without the frame"
    assert read_previews(tmp_path / "absent", 64) == {}
