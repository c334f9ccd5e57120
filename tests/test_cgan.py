import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from helpers.data.files import DataError
from helpers.data.store import Store
from helpers.models.cgan import CGAN, CGANConfig, UnpairedCGAN, d4_augment, load_cgan, make_preview, sample, train_cgan
from helpers.models.checkpoint import export_weights
from helpers.models.trainer import TrainConfig

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def small(size: int = 64) -> CGANConfig:
    return CGANConfig(size, CLASSES, base_channels=8)


@pytest.fixture
def store(phantom_store) -> Store:
    return phantom_store


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="96 is not one of 64, 128, 256"):
        CGANConfig(96, CLASSES)


def test_one_step_moves_both_networks_and_leaves_no_trace_of_the_other():
    torch.manual_seed(0)
    method = CGAN(small())
    before = {n: [p.clone() for p in net.parameters()] for n, net in method.networks.items()}
    batch, gradients = batch_of_noise(), []
    backward = Backward(method.networks, gradients)
    told = method.training_step(batch, 0, backward)
    assert set(told) == {"d", "g", "real_score", "fake_score", "feature_matching", "l1", "texture", "kl"}
    assert all(math.isfinite(v.item()) for v in told.values())
    for name, net in method.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True)), name
    first, second = gradients
    assert first["discriminator"] and not first["generator"] and not first["encoder"], "drawn pictures are detached"
    assert second["generator"] and second["encoder"] and not second["discriminator"], "frozen in the generator's update"
    assert all(p.requires_grad for p in method.networks["discriminator"].parameters())


def test_a_projected_discriminator_learns_with_its_heads_and_keeps_its_eyes():
    torch.manual_seed(0)
    method = CGAN(replace(small(), projected=True))
    judge = method.networks["discriminator"]
    eyes = {name: weight.clone() for name, weight in judge.eyes.state_dict().items()}
    heads = [weight.clone() for weight in judge.heads.parameters()]
    method.training_step(batch_of_noise(), 0, Backward(method.networks, []))
    assert all(torch.equal(weight, eyes[name]) for name, weight in judge.eyes.state_dict().items())
    assert not any(weight.requires_grad for weight in judge.eyes.parameters()), "frozen before and after"
    assert all(not torch.equal(a, b) for a, b in zip(heads, judge.heads.parameters(), strict=True))


def test_training_begins_with_the_weights_of_another(store, tmp_path):
    train_cgan(store, small(), tmp_path / "one", TrainConfig(1, 4))
    settings = replace(small(), projected=True)
    method = CGAN(settings)
    method.init_from(tmp_path / "one/checkpoint.pt")
    saved = torch.load(tmp_path / "one/checkpoint.pt", weights_only=True)["networks"]
    for name, network in method.networks.items():
        now = network.state_dict()
        assert all(torch.equal(weight, now[key]) for key, weight in saved[name].items()), name
    train_cgan(store, settings, tmp_path / "two", TrainConfig(1, 4), init_from=tmp_path / "one/checkpoint.pt")
    assert load_cgan(tmp_path / "two/checkpoint.pt")[1] == settings
    kept = torch.load(tmp_path / "two/checkpoint.pt", weights_only=True)["extra_state"]
    assert kept["start"].endswith("one/checkpoint.pt")
    train = store.table["image_id"].iloc[store.rows("train", needs=["sketch", "label"])]
    assert kept["trained_on"] == sorted(train)
    others = store.rows("val", needs=["sketch", "label"])
    with pytest.raises(DataError, match=f"was trained on {len(train)} pictures that are held out"):
        train_cgan(
            store, small(), tmp_path / "three", TrainConfig(1, 4), others, init_from=tmp_path / "one/checkpoint.pt"
        )


def test_training_begins_with_released_weights_and_a_new_adversary(store, tmp_path):
    train_cgan(store, small(), tmp_path, TrainConfig(1, 4))
    method = CGAN(replace(small(), projected=True))
    fresh = {name: copy.deepcopy(method.networks[name].state_dict()) for name in ("encoder", "discriminator")}
    method.init_from(export_weights(tmp_path / "checkpoint.pt", tmp_path / "cgan.safetensors"))
    averages = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["ema_models"]["generator"]
    now = method.networks["generator"].state_dict()
    assert all(torch.allclose(weight, now[key], atol=1e-3) for key, weight in averages.items())
    for name, weights in fresh.items():
        now = method.networks[name].state_dict()
        assert all(torch.equal(weight, now[key]) for key, weight in weights.items()), name
    assert method.extra_state["start"].endswith("cgan.safetensors") and method.extra_state["trained_on"]


def test_turned_pictures_keep_their_sketches_and_come_in_eight_positions():
    torch.manual_seed(0)
    corner = torch.zeros(1, 1, 8, 8)
    corner[0, 0, 0, 1] = 1
    batch = {
        "images": corner.expand(200, 3, 8, 8),
        "sketches": corner.expand(200, 1, 8, 8),
        "labels": torch.arange(200),
    }
    found = d4_augment(batch)
    assert torch.equal(found["images"][:, :1], found["sketches"]) and torch.equal(found["labels"], batch["labels"])
    places = {tuple(place) for place in found["sketches"].nonzero()[:, 2:].tolist()}
    assert places == {(0, 1), (1, 0), (0, 6), (6, 0), (7, 1), (1, 7), (7, 6), (6, 7)}


def test_another_kind_of_training_is_no_start(store, tmp_path):
    train_cgan(store, small(), tmp_path, TrainConfig(1, 4))
    changes = {
        "networks of other sizes": {"width": 16},
        r"has classes \['MEL'": {"classes": CLASSES[::-1]},
        "has style 'contour'": {"style": "structure"},
    }
    for told, changed in changes.items():
        with pytest.raises(ValueError, match=told):
            CGAN(replace(small(), **changed)).init_from(tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for less in ({"networks": {"segmenter": {}}}, saved | {"networks": saved["networks"] | {"encoder": {}}}):
        torch.save(less, tmp_path / "other.pt")
        with pytest.raises(DataError, match="is not a checkpoint of `train cgan`"):
            CGAN(small()).init_from(tmp_path / "other.pt")


def batch_of_noise() -> dict[str, torch.Tensor]:
    images, sketches = torch.rand(4, 3, 64, 64) * 2 - 1, torch.rand(4, 1, 64, 64).round()
    return {"images": images, "sketches": sketches, "labels": torch.arange(4)}


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


def test_drawing_is_reproducible_and_takes_given_noise():
    torch.manual_seed(0)
    generator = small().generator().eval()
    sketches = np.zeros((5, 64, 64), np.uint8)
    sketches[:, 20:40, 20:22] = 255
    before = torch.random.get_rng_state()
    one = sample(generator, sketches, [0, 1, 2, 3, 4], seed=3, batch_size=2)
    assert one.shape == (5, 64, 64, 3) and one.dtype == np.uint8
    assert np.array_equal(one, sample(generator, sketches, [0, 1, 2, 3, 4], seed=3, batch_size=2))
    assert not np.array_equal(one, sample(generator, sketches, [0, 1, 2, 3, 4], seed=4, batch_size=2))
    assert torch.equal(before, torch.random.get_rng_state()), "other random numbers are left alone"
    same = sample(generator, sketches[:2], [0, 0], latent=torch.zeros(2, 16))
    assert np.array_equal(same[0], same[1]), "the same grain too"
    assert not np.array_equal(same, sample(generator, sketches[:2], [0, 0], latent=torch.zeros(2, 16), seed=1))
    different = sample(generator, sketches[:2], [0, 0], latent=torch.tensor([[-2.0], [2.0]]).expand(2, 16))
    assert not np.array_equal(different[0], different[1])
    with pytest.raises(ValueError, match="5 sketches, 2 labels"):
        sample(generator, sketches, [0, 1])
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels, the network draws \(64, 64\)"):
        sample(generator, sketches[:, :32, :32], [0] * 5)


def test_settings_that_do_not_fit_the_store_are_refused(store, tmp_path):
    with pytest.raises(ValueError, match="size 64, not 128"):
        train_cgan(store, small(128), tmp_path, TrainConfig(1))
    with pytest.raises(ValueError, match=r"classes .* not .*'MEL', 'NV'"):
        train_cgan(store, CGANConfig(64, ("MEL", "NV"), base_channels=8), tmp_path, TrainConfig(1))
    with pytest.raises(ValueError, match="style 'contour', not 'structure'"):
        train_cgan(store, CGANConfig(64, CLASSES, style="structure", base_channels=8), tmp_path, TrainConfig(1))
    assert list(tmp_path.iterdir()) == []


def test_preview_shows_every_label_and_two_more_noises(store):
    preview = make_preview(store, small(), seed=0, num_sketches=3)
    assert preview["sketches"].shape == (27, 1, 64, 64) and preview["columns"] == 9
    assert preview["labels"][:7].tolist() == list(range(7))
    assert torch.equal(preview["sketches"][0], preview["sketches"][8])
    assert torch.equal(preview["latents"][0], preview["latents"][6])
    assert not torch.equal(preview["latents"][0], preview["latents"][7])


def test_train_resume_and_load(store, tmp_path):
    run = {"batch": 4, "report_every": 2, "save_every": 2}
    history = train_cgan(store, small(), tmp_path / "whole", TrainConfig(6, **run))
    train_cgan(store, small(), tmp_path / "parts", TrainConfig(2, **run))
    assert train_cgan(store, small(), tmp_path / "parts", TrainConfig(6, **run)) == history
    one, settings = load_cgan(tmp_path / "whole/checkpoint.pt")
    other, _ = load_cgan(tmp_path / "parts/checkpoint.pt")
    assert settings == small() and isinstance(one, nn.Module)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert sorted(p.name for p in (tmp_path / "whole").glob("grid-*.png")) == [f"grid-{k:06d}.png" for k in (2, 4, 6)]
    with pytest.raises(ValueError, match="width 8 there, 16 here"):
        train_cgan(store, CGANConfig(64, CLASSES, base_channels=16), tmp_path / "whole", TrainConfig(8, **run))


def test_the_penalty_follows_the_size_unless_it_is_given():
    assert [CGANConfig(size, ("NV",)).r1_gamma for size in (64, 128, 256)] == [0.02, 0.02, 1.0]
    assert CGANConfig(256, ("NV",), r1_gamma=0.5).r1_gamma == 0.5


def test_unpaired_learns_from_no_pair_and_is_drawn_with_alike(store, tmp_path):
    settings = replace(small(), paired=False)
    history = train_cgan(store, settings, tmp_path, TrainConfig(2, batch_size=4, log_every=1))
    assert history["sketch"][0] > 0 and all(np.isfinite(history["l1"]))
    generator, loaded = load_cgan(tmp_path / "checkpoint.pt")
    assert loaded == settings and sample(generator, store.sketches[:2], [0, 1]).shape == (2, 64, 64, 3)


def test_an_unpaired_sketch_is_obeyed_by_two_tones_and_the_discriminator_does_not_see_it():
    method, sketches = UnpairedCGAN(replace(small(), paired=False)), torch.zeros(2, 1, 64, 64)
    region = torch.zeros(2, 1, 64, 64)
    region[:, :, 20:44, 20:44] = 1
    sketches[:, :, 20:44, 20:44] = 1
    sketches[:, :, 22:42, 22:42] = 0
    photographs = 0.8 - region.roll(-12, dims=3) + 0.05 * torch.randn(2, 3, 64, 64)
    batch = {"images": photographs, "sketches": sketches, "labels": torch.arange(2)}
    obeying, ignoring = ((0.8 - place).expand(2, 3, 64, 64) for place in (region, region.roll(12, dims=2)))
    told, other = (method.reconstruction_losses(drawn, batch, num_encoded=1) for drawn in (obeying, ignoring))
    assert told["sketch"] == 0 < 0.3 < other["sketch"]
    assert told["l1"] < 0.05 < 0.3 < other["l1"], "dark inside, light outside, wherever in the photograph"
    judge = method.networks["discriminator"]
    answers = []
    for shown in (sketches, 1 - sketches):
        torch.manual_seed(0)
        answers.append(method.run_discriminator(judge, photographs, batch | {"sketches": shown})[1])
    assert torch.equal(*answers)
