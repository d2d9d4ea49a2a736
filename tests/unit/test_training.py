"""The training behind the default model: gradients, signals, and that the same source gives the same bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inference import models
from tools.training import model, network, signals

SIZES = (6, 5, 2, 5, 6)


def loss(layers: list[network.Layer], rows: network.Array) -> float:
    return float(np.mean((network.reconstruct(layers, rows) - rows) ** 2))


def moved(layers: list[network.Layer], rank: int, at: tuple[int, int], by: float) -> list[network.Layer]:
    weights = layers[rank].weights.copy()
    weights[at] += by
    return [*layers[:rank], network.Layer(weights, layers[rank].bias, layers[rank].rectified), *layers[rank + 1 :]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(0, 3))
def test_gradients_are_the_slopes_of_the_loss(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    layers, rows = network.initial(rng, SIZES), rng.standard_normal((7, 6))
    slope = network.gradients(layers, rows)[rank][0]
    at = np.unravel_index(int(rng.integers(slope.size)), slope.shape)
    step = 1e-6
    measured = (loss(moved(layers, rank, at, step), rows) - loss(moved(layers, rank, at, -step), rows)) / (2 * step)
    assert slope[at] == pytest.approx(measured, rel=1e-3, abs=1e-6)


def test_training_lowers_the_loss() -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((500, 2)) @ rng.standard_normal((2, 6))).astype(np.float32)
    *_, layers = network.train(np.random.default_rng(2), (6, 24, 2, 24, 6), rows, steps=1500, batch=32)
    assert loss(layers, rows.astype(np.float64)) < 0.1 * float(np.mean(rows**2))


@pytest.mark.parametrize(("name", "family"), signals.FAMILIES, ids=[name for name, _ in signals.FAMILIES])
def test_every_family_makes_finite_standard_signals(name: str, family: signals.Family) -> None:
    made = signals.standardise(family(np.random.default_rng(3), 50, signals.LENGTH))
    assert made.shape == (50, signals.LENGTH)
    np.testing.assert_allclose(made.mean(axis=1), 0.0, atol=1e-9)
    np.testing.assert_allclose(made.std(axis=1), 1.0, atol=1e-6)


def test_one_seed_makes_the_same_windows() -> None:
    first, again, other = (signals.windows(seed, 5, 2, 64) for seed in (4, 4, 5))
    for name, rows in first.items():
        assert rows.shape == (10, 64)
        np.testing.assert_array_equal(rows, again[name])
        assert not np.array_equal(rows, other[name])


def test_one_source_builds_the_same_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "TRAIN_SIGNALS", 20)
    monkeypatch.setattr(model, "HELD_OUT_SIGNALS", 5)
    made = []
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        made.append(model.build(tmp_path / name, steps=20))
    assert made[0].name == made[1].name
    assert models.load(made[0]).card.evaluation == models.load(made[1]).card.evaluation


def test_the_shipped_card_and_the_papers_say_what_is_measured(repository: Path) -> None:
    held_out = signals.windows(model.HELD_OUT_SEED, model.HELD_OUT_SIGNALS, model.WINDOWS_PER_SIGNAL, model.WIDTH)
    measured = model._explained(model._compiled(models.shipped() / "model.xml"), model._stack(held_out))
    told = models.load(models.shipped()).card.evaluation
    assert told["explained_int8"] - 0.005 <= measured <= told["explained"]
    paper = " ".join((repository / "appliance" / "inference" / "README.md").read_text().split())
    assert f"gives back {told['explained']:.0%}".replace("%", " %") in paper
    assert f"{told['explained_int8']:.0%} on older ones".replace("%", " %") in paper
    assert f"neck gives back {told['explained_linear_10']:.0%}".replace("%", " %") in paper
