import numpy as np
import pytest

from helpers.metrics.memorization import make_copies, memorization, thumbnails


@pytest.fixture
def feature_sets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Synthetic, training and held-out features of one distribution."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(n, 8)) for n in (200, 500, 200))


def test_memorization_same_distribution_finds_no_copies(feature_sets):
    synthetic, train, held_out = feature_sets
    result = memorization(synthetic, train, held_out)
    assert result.copies <= 0.03
    assert result.authenticity == pytest.approx(result.held_out_authenticity, abs=0.1)
    assert np.allclose(result.distances, np.linalg.norm(train[result.nearest] - synthetic, axis=1))
    assert (memorization(held_out, train, held_out).distances < result.limit).mean() == pytest.approx(0.01)


def test_memorization_third_of_images_copied_finds_a_third(feature_sets):
    synthetic, train, held_out = feature_sets
    synthetic[:66] = train[100:166] + 0.001
    result = memorization(synthetic, train, held_out)
    assert result.copies == pytest.approx(0.33, abs=0.03)
    assert set(result.closest(66)) == set(range(66)) and (result.nearest[:66] == np.arange(100, 166)).all()
    assert result.authenticity < result.held_out_authenticity - 0.1
    assert "of 200 synthetic images" in str(result) and "200 held-out" in str(result)


def test_memorization_held_out_images_in_training_set_still_finds_copies_and_warns(feature_sets):
    synthetic, train, held_out = feature_sets
    assert "ARE" not in str(memorization(train[100:200], train, synthetic))
    held_out[:5] = train[:5]
    result = memorization(train[100:200], train, held_out)
    assert result.copies == 1 and "5 of the held-out images ARE training images" in str(result)


def test_memorization_one_training_image_raises(feature_sets):
    synthetic, train, held_out = feature_sets
    with pytest.raises(ValueError, match="at least 2 training images to know their distances, got 1"):
        memorization(synthetic, train[:1], held_out)


def test_make_copies_of_phantoms_are_all_found(phantom_store):
    train, held_out = (phantom_store.images[phantom_store.rows(split)] for split in ("train", "test"))
    copies, rows = make_copies(train, 20, np.random.default_rng(0))
    assert copies.shape == (20, *train.shape[1:]) and not (copies == train[rows]).all(axis=(1, 2, 3)).any()
    result = memorization(*(thumbnails(images) for images in (copies, train, held_out)))
    assert (result.nearest == rows).all() and result.copies == 1


def test_thumbnails_uniform_images_distance_is_difference_of_pixel_values():
    black, gray = (np.full((1, 128, 128, 3), value, np.uint8) for value in (0, 51))
    assert np.linalg.norm(thumbnails(gray) - thumbnails(black)) == pytest.approx(0.2)
