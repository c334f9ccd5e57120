import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers.data.layouts import read
from helpers.data.store import Store, StoreSettings, prepare
from helpers.models.cgan import (
    CGAN,
    CGANSettings,
    Discriminator,
    Encoder,
    Generator,
    balanced_batches,
    d_loss,
    detail,
    divergence,
    draw,
    g_loss,
    lines_around,
    load_cgan,
    preview_of,
    r1_penalty,
    roughness,
    texture_difference,
    train_cgan,
)
from helpers.models.training import Run

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def small(size: int = 64) -> CGANSettings:
    return CGANSettings(size, CLASSES, width=8)


@pytest.fixture(scope="module")
def store(phantoms, tmp_path_factory) -> Store:
    return prepare(read(phantoms), tmp_path_factory.mktemp("stores"), StoreSettings(64), progress=False)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_shapes_and_ranges(size):
    torch.manual_seed(0)
    settings = small(size)
    sketch, label, noise = torch.rand(2, 1, size, size).round(), torch.tensor([0, 6]), torch.randn(2, settings.noise)
    image = Generator(settings).eval()(sketch, label, noise)
    assert image.shape == (2, 3, size, size) and image.abs().max() <= 1
    patches, whole, features = Discriminator(settings)(image, sketch, label)
    assert patches.shape == (2, 16 * 16) and whole.shape == (2,) and features.shape[0] == 2
    mean, log_variance = Encoder(settings)(image, label)
    assert mean.shape == log_variance.shape == noise.shape


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="96 is not one of 64, 128, 256"):
        CGANSettings(96, CLASSES)


def test_sketch_label_and_noise_all_change_the_picture():
    torch.manual_seed(0)
    generator = Generator(small()).eval()

    def picture(sketch: torch.Tensor, label: int, seed: int) -> torch.Tensor:
        noise = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(5)  # the same grain
        return generator(sketch, torch.tensor([label]), noise)

    blank, line = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    line[..., 32, :] = 1
    base = picture(blank, 0, 0)
    assert torch.equal(base, picture(blank, 0, 0))
    for other in (picture(line, 0, 0), picture(blank, 1, 0), picture(blank, 0, 1)):
        assert (other - base).abs().mean() > 1e-3


def test_the_label_reaches_only_the_whole_logit():
    torch.manual_seed(0)
    discriminator = Discriminator(small()).eval()
    image, sketch = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    one = discriminator(image, sketch, torch.tensor([0, 1]))
    other = discriminator(image, sketch, torch.tensor([2, 1]))
    assert torch.equal(one[0], other[0]) and one[1][0] != other[1][0] and one[1][1] == other[1][1]


def test_losses_of_known_logits():
    zero = (torch.zeros(3, 4), torch.zeros(3))
    assert d_loss(zero, zero).item() == pytest.approx(4 * math.log(2))
    assert g_loss(zero).item() == pytest.approx(2 * math.log(2))
    sure = (torch.full((3, 4), 20.0), torch.full((3,), 20.0))
    assert d_loss(sure, tuple(-x for x in sure)).item() < 1e-6
    assert g_loss(sure).item() < 1e-6 < 10 < g_loss(tuple(-x for x in sure)).item()


def test_r1_of_a_linear_function():
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4)
    assert r1_penalty((images * weight).sum(dim=(1, 2, 3)), images).item() == pytest.approx(
        0.5 * weight.square().sum().item(), rel=1e-5
    )


def test_lines_around_finds_the_inside_of_an_outline_and_survives_a_gap():
    sketch = torch.zeros(1, 1, 16, 16)
    sketch[..., 4, 4:12] = sketch[..., 11, 4:12] = sketch[..., 4:12, 4] = sketch[..., 4:12, 11] = 1
    around = lines_around(sketch)[0]
    assert around.shape == (4, 16, 16) and set(around.unique().tolist()) == {0, 1}
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:12, 4:12] = True
    assert torch.equal(around.sum(dim=0) == 4, inside)
    assert around[:, 0, 0].sum() == 0 and around[:, 8, 0].sum() == 1
    sketch[..., 8, 11] = 0
    inside[8, 5:] = False
    assert torch.equal(lines_around(sketch)[0].sum(dim=0) == 4, inside), "one row, no more, is lost through a gap"


def test_lines_around_closes_small_gaps():
    sketch = torch.zeros(1, 1, 64, 64)
    sketch[..., 12, 12:52] = sketch[..., 51, 12:52] = sketch[..., 12:52, 12] = sketch[..., 12:52, 51] = 1
    inside = lines_around(sketch).sum(dim=1) == 4
    sketch[..., 30:34, 51] = 0
    assert torch.equal(lines_around(sketch).sum(dim=1) == 4, inside), "four of 64 pixels are closed"
    sketch[..., 24:40, 51] = 0
    lost = inside & (lines_around(sketch).sum(dim=1) != 4)
    assert lost.any(dim=2).sum() == 16, "sixteen are not"


def test_texture_is_compared_by_strength_direction_and_colour_not_pixel_by_pixel():
    torch.manual_seed(0)
    base = torch.linspace(-0.5, 0.5, 64).expand(2, 3, 64, 64)
    grain, other = (0.05 * torch.randn(2, 1, 64, 64) for _ in range(2))
    same = texture_difference(base + grain, base + other)
    assert texture_difference(base + grain, base + grain).item() == 0
    assert texture_difference(base + 0.4, base).item() < 1e-4, "light is not texture"
    stripes = grain[..., :1].expand(2, 1, 64, 64)
    diagonal = torch.stack([grain[:, :, 0].roll(k, dims=-1) for k in range(64)], dim=2)
    coloured = 0.05 * torch.randn(2, 3, 64, 64)
    for worse in (base, base + 3 * grain, base + stripes, base + diagonal, base + coloured):
        assert texture_difference(worse, base + other) > 2 * same


def test_roughness_of_a_known_texture():
    checks = 0.1 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(1, 3, 32, 32)
    rough = roughness(checks)
    assert rough.shape == (1, 12, 4, 4)
    assert rough[0, [0, 3]].flatten().tolist() == pytest.approx([math.log(0.2)] * 32, abs=1e-3), (
        "neighbours differ by 0.2"
    )
    assert rough[0, [1, 2, 4, 5]].max() < math.log(0.01), "grey has no colour noise"
    assert rough[0, [6, 9]].max() < math.log(0.01), "along a diagonal a chessboard is of one colour"


def test_divergence_from_the_standard_normal():
    assert divergence(torch.zeros(3, 5), torch.zeros(3, 5)).item() == 0
    assert divergence(torch.ones(3, 5), torch.zeros(3, 5)).item() == pytest.approx(2.5)
    assert divergence(torch.zeros(3, 1), torch.full((3, 1), math.log(4.0))).item() == pytest.approx(
        0.5 * (3 - math.log(4))
    )


def test_one_step_moves_both_networks_and_leaves_no_trace_of_the_other():
    torch.manual_seed(0)
    method = CGAN(small())
    before = {n: [p.clone() for p in net.parameters()] for n, net in method.networks.items()}
    batch = {
        "images": torch.rand(4, 3, 64, 64) * 2 - 1,
        "sketches": torch.rand(4, 1, 64, 64).round(),
        "labels": torch.arange(4),
    }
    gradients = []
    backward = Backward(method.networks, gradients)
    told = method.step(batch, 0, backward)
    assert set(told) == {"d", "g", "on_real", "on_drawn", "matched", "rebuilt", "texture", "prior"}
    assert all(math.isfinite(v.item()) for v in told.values())
    for name, net in method.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True)), name
    first, second = gradients
    assert first["discriminator"] and not first["generator"] and not first["encoder"], "drawn pictures are detached"
    assert second["generator"] and second["encoder"] and not second["discriminator"], "frozen in the generator's update"
    assert all(p.requires_grad for p in method.networks["discriminator"].parameters())


class Backward:
    """Calls backward with clean gradients, and notes which networks got some."""

    def __init__(self, networks: dict[str, nn.Module], notes: list[dict[str, bool]]):
        self.networks, self.notes = networks, notes

    def __call__(self, loss: torch.Tensor) -> None:
        for net in self.networks.values():
            net.zero_grad(set_to_none=True)
        loss.backward()
        got = {n: any(p.grad is not None for p in net.parameters()) for n, net in self.networks.items()}
        self.notes.append(got)


def test_batches_are_balanced_reproducible_and_of_the_training_split(store):
    draw = balanced_batches(store, 200, seed=0)
    batch, again, other = draw(3, 0), draw(3, 0), draw(4, 0)
    assert torch.equal(batch["images"], again["images"]) and not torch.equal(batch["images"], other["images"])
    assert not torch.equal(batch["images"], draw(3, 1)["images"]), "another process sees other pictures"
    counts = torch.bincount(torch.cat([draw(k, 0)["labels"] for k in range(10)]), minlength=7) / 2000
    assert (counts - 1 / 7).abs().max() < 0.03
    train = store.batch(store.rows("train"))["images"].reshape(len(store.rows("train")), -1)
    known = {row.tobytes() for row in train}
    back = ((batch["images"][:20].permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    assert all(picture.tobytes() in known for picture in back)


def test_a_share_of_the_sketches_is_redrawn_by_hand(store):
    plain, some = (balanced_batches(store, 200, seed=0, by_hand=share)(0, 0) for share in (0.0, 0.3))
    changed = (plain["sketches"] != some["sketches"]).flatten(1).any(dim=1).float().mean()
    assert torch.equal(plain["images"], some["images"]) and 0.2 < changed < 0.4


def test_drawing_is_reproducible_and_takes_given_noise():
    torch.manual_seed(0)
    generator = Generator(small()).eval()
    sketches = np.zeros((5, 64, 64), np.uint8)
    sketches[:, 20:40, 20:22] = 255
    before = torch.random.get_rng_state()
    one = draw(generator, sketches, [0, 1, 2, 3, 4], seed=3, batch=2)
    assert one.shape == (5, 64, 64, 3) and one.dtype == np.uint8
    assert np.array_equal(one, draw(generator, sketches, [0, 1, 2, 3, 4], seed=3, batch=2))
    assert not np.array_equal(one, draw(generator, sketches, [0, 1, 2, 3, 4], seed=4, batch=2))
    assert torch.equal(before, torch.random.get_rng_state()), "other random numbers are left alone"
    same = draw(generator, sketches[:2], [0, 0], noise=torch.zeros(2, 16))
    assert np.array_equal(same[0], same[1]), "the same grain too"
    assert not np.array_equal(same, draw(generator, sketches[:2], [0, 0], noise=torch.zeros(2, 16), seed=1))
    different = draw(generator, sketches[:2], [0, 0], noise=torch.tensor([[-2.0], [2.0]]).expand(2, 16))
    assert not np.array_equal(different[0], different[1])
    with pytest.raises(ValueError, match="5 sketches, 2 labels"):
        draw(generator, sketches, [0, 1])
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels, the network draws \(64, 64\)"):
        draw(generator, sketches[:, :32, :32], [0] * 5)


def test_settings_that_do_not_fit_the_store_are_refused(store, tmp_path):
    with pytest.raises(ValueError, match="size 64, not 128"):
        train_cgan(store, small(128), tmp_path, Run(1))
    with pytest.raises(ValueError, match=r"classes .* not .*'MEL', 'NV'"):
        train_cgan(store, CGANSettings(64, ("MEL", "NV"), width=8), tmp_path, Run(1))
    with pytest.raises(ValueError, match="style 'contour', not 'structure'"):
        train_cgan(store, CGANSettings(64, CLASSES, style="structure", width=8), tmp_path, Run(1))
    assert list(tmp_path.iterdir()) == []


def test_any_width_makes_a_network():
    for width in (5, 50, 56):
        Generator(CGANSettings(64, CLASSES, width=width))


def test_preview_shows_every_label_and_two_more_noises(store):
    preview = preview_of(store, small(), seed=0, sketches=3)
    assert preview["sketches"].shape == (27, 1, 64, 64) and preview["columns"] == 9
    assert preview["labels"][:7].tolist() == list(range(7))
    assert torch.equal(preview["sketches"][0], preview["sketches"][8])
    assert torch.equal(preview["noises"][0], preview["noises"][6])
    assert not torch.equal(preview["noises"][0], preview["noises"][7])


def test_train_resume_and_load(store, tmp_path):
    run = {"batch": 4, "report_every": 2, "save_every": 2}
    history = train_cgan(store, small(), tmp_path / "whole", Run(6, **run))
    train_cgan(store, small(), tmp_path / "parts", Run(2, **run))
    assert train_cgan(store, small(), tmp_path / "parts", Run(6, **run)) == history
    one, settings = load_cgan(tmp_path / "whole/checkpoint.pt")
    other, _ = load_cgan(tmp_path / "parts/checkpoint.pt")
    assert settings == small() and isinstance(one, nn.Module)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert sorted(p.name for p in (tmp_path / "whole").glob("grid-*.png")) == [f"grid-{k:06d}.png" for k in (2, 4, 6)]
    with pytest.raises(ValueError, match="width 8 there, 16 here"):
        train_cgan(store, CGANSettings(64, CLASSES, width=16), tmp_path / "whole", Run(8, **run))


def test_detail_is_what_a_blur_takes_away():
    torch.manual_seed(0)
    flat = torch.full((1, 3, 32, 32), 0.3)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    grain = flat + 0.02 * torch.randn(1, 3, 32, 32)
    assert detail(flat).abs().max() < 1e-5
    assert detail(ramp)[..., 4:-4].abs().max() < 1e-4, "a smooth slope has no detail"
    assert detail(grain).std().item() == pytest.approx(0.2, rel=0.1)


def test_a_fresh_generator_has_no_screen_pattern():
    torch.manual_seed(0)
    image = Generator(small())(torch.zeros(1, 1, 64, 64), torch.tensor([0]), torch.zeros(1, 16))
    blocks = image.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert blocks.std(dim=-1).max() < 1e-6, "the four pixels of a block begin alike"
