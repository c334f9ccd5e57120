import numpy as np
import pytest

from helpers.metrics.memorization import make_copies, memorization, thumbnails


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(n, 8)) for n in (200, 500, 200))


def test_what_is_drawn_like_the_held_out_images_shows_no_copying(sets):
    synthetic, train, held_out = sets
    found = memorization(synthetic, train, held_out)
    assert found.copies <= 0.03
    assert found.authenticity == pytest.approx(found.held_out_authenticity, abs=0.1)
    assert np.allclose(found.distances, np.linalg.norm(train[found.nearest] - synthetic, axis=1))
    assert (memorization(held_out, train, held_out).distances < found.limit).mean() == pytest.approx(0.01)


def test_a_third_of_copies_is_found_to_be_a_third(sets):
    synthetic, train, held_out = sets
    synthetic[:66] = train[100:166] + 0.001
    found = memorization(synthetic, train, held_out)
    assert found.copies == pytest.approx(0.33, abs=0.03)
    assert set(found.closest(66)) == set(range(66)) and (found.nearest[:66] == np.arange(100, 166)).all()
    assert found.authenticity < found.held_out_authenticity - 0.1
    assert "of 200 synthetic images" in str(found) and "200 held-out" in str(found)


def test_every_planted_copy_of_a_picture_is_found(phantom_store):
    train, held_out = (phantom_store.images[phantom_store.rows(split)] for split in ("train", "test"))
    copies, rows = make_copies(train, 20, np.random.default_rng(0))
    assert copies.shape == (20, *train.shape[1:]) and not (copies == train[rows]).all(axis=(1, 2, 3)).any()
    found = memorization(*(thumbnails(images) for images in (copies, train, held_out)))
    assert (found.nearest == rows).all() and found.copies == 1


def test_held_out_images_that_are_training_images_do_not_hide_copies(sets):
    _, train, held_out = sets
    held_out[:5] = train[:5]
    found = memorization(train[100:200], train, held_out)
    assert found.copies == 1 and "5 of the held-out images ARE training images" in str(found)
    assert "ARE" not in str(memorization(train[100:200], train, sets[0]))


def test_thumbnails_measure_grey_values():
    black, grey = (np.full((1, 128, 128, 3), value, np.uint8) for value in (0, 51))
    assert np.linalg.norm(thumbnails(grey) - thumbnails(black)) == pytest.approx(0.2)


def test_one_training_image_is_refused(sets):
    with pytest.raises(ValueError, match="1 training images"):
        memorization(sets[0], sets[1][:1], sets[2])
