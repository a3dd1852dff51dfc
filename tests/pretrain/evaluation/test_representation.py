"""What tells of features without labels: against restatements in float64 and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from pretrain.evaluation import representation as measures
from pretrain.evaluation.look import find_collapse, measure_features

RNG = np.random.default_rng(0)
ODD = RNG.normal(size=(50, 12)) * np.geomspace(1, 0.01, 12) + 0.3
ALL = ("rankme", "cosine", "dead", "alpha_req", "lidar", "intrinsic_dimension")


def restate_rankme(z):
    """From the eigenvalues of the Gram matrix instead of singular values."""
    s = np.sqrt(np.clip(np.linalg.eigvalsh(z.T @ z), 0, None))
    p = s / s.sum()
    return np.exp(-sum(x * np.log(x) for x in p if x > 0))


def restate_cosine(z):
    pairs = [(a, b) for i, a in enumerate(z) for b in z[:i]]
    return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])


def restate_alpha(z):
    """The authors' weighted normal equations (`stringer_get_powerlaw` of fastssl), on eigenvalues of the covariance."""
    eigenvalues = np.linalg.eigvalsh(np.cov(z, rowvar=False, bias=True))[::-1]
    i = np.arange(4, min(50, len(eigenvalues)) + 1)
    x = np.stack([-np.log(i), np.ones(len(i))], axis=1)
    w = 1 / i[:, None]
    return np.linalg.solve(x.T @ (x * w), (w * x).T @ np.log(eigenvalues[i - 1]))[0]


def restate_lidar(views):
    """Eq. 1–4 of the paper by sums over samples and views, and the generalised eigenvalue problem."""
    n, q, d = views.shape
    between, within = np.zeros((d, d)), measures.LIDAR_RIDGE * np.eye(d)
    for sample in views:
        own = sample.mean(0)
        between += np.outer(own - views.mean((0, 1)), own - views.mean((0, 1))) / (n - 1)
        within += sum(np.outer(v - own, v - own) for v in sample) / (n * (q - 1))
    values = np.clip(np.linalg.eigvals(np.linalg.solve(within, between)).real, 0, None)
    p = values / values.sum()
    return np.exp(-sum(x * np.log(x) for x in p if x > 0))


def test_every_measure_equals_its_restatement():
    views = RNG.normal(size=(20, 1, 6)) * np.arange(1, 7) + 0.5 * RNG.normal(size=(20, 4, 6))
    found = measure_features(ODD, views, ALL)
    assert found["rankme"] == pytest.approx(restate_rankme(ODD), rel=1e-9)
    assert found["cosine"] == pytest.approx(restate_cosine(ODD), rel=1e-9)
    assert found["alpha_req"] == pytest.approx(restate_alpha(ODD), rel=1e-9)
    assert found["lidar"] == pytest.approx(restate_lidar(views), rel=1e-9)
    assert found["spread"] == pytest.approx(1 - np.square(ODD.mean(0)).sum() / np.square(ODD).sum(1).mean())
    assert found["rankme_bound"] == 12
    assert found["lidar_bound"] == min(20 - 1, 12)
    tree = minimum_spanning_tree(cdist(ODD, ODD)).sum()
    assert measures.tree_length(cdist(ODD, ODD)) == pytest.approx(tree, rel=1e-9)


def test_known_cases_of_rank():
    assert measures.rankme(np.full((40, 8), 3.0)) == pytest.approx(1, abs=1e-6)
    assert measures.rankme(np.zeros((40, 8))) == 1
    orthogonal = np.linalg.qr(RNG.normal(size=(40, 8)))[0]
    assert measures.rankme(7 * orthogonal) == pytest.approx(8, rel=1e-12)
    assert measures.rankme(orthogonal[:, :3] @ RNG.normal(size=(3, 8))) <= 3 + 1e-6
    assert measures.lidar(np.repeat(orthogonal[:, None], 3, axis=1)) == pytest.approx(8, rel=0.05)


def test_known_cases_of_cosine():
    assert measures.mean_cosine(np.array([[1.0, 0], [0, 2], [-3, 0], [0, -4]])) == pytest.approx(-1 / 3)
    assert measures.mean_cosine(np.array([[1.0, 2], [2, 4], [0, 0]])) == pytest.approx(1)
    assert measures.mean_cosine(np.zeros((5, 2))) == 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_dead_dimensions_are_counted_exactly_whatever_the_scale(scale):
    z = RNG.normal(size=(64, 10)).astype(np.float32)
    z[:, [1, 5, 6]] = [0.0, 4.0, -2.0]
    z[:, 6] += np.float32(1e-6) * RNG.normal(size=64)  # rounding
    z[:, 7] *= 0.01  # small, and alive
    assert measures.dead_share((scale * z).astype(np.float64)) == 0.3
    assert measures.dead_share(np.ones((4, 3))) == 1
    assert measures.dead_share(np.zeros((4, 3))) == 1


def test_a_power_law_has_its_exponent():
    basis = np.linalg.qr(RNG.normal(size=(200, 60)) - 0)[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0]  # centred columns stay orthogonal
    for alpha in (0.5, 1.0, 2.0):
        z = basis * np.arange(1, 61) ** (-alpha / 2) + 5.0
        assert measures.alpha_req(z) == pytest.approx(alpha, rel=1e-6)
    assert np.isnan(measures.alpha_req(np.ones((9, 4))))


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_intrinsic_dimension_is_that_of_the_surface_not_of_the_space(dimension):
    flat = RNG.random((500, dimension)) @ np.linalg.qr(RNG.normal(size=(9, dimension)))[0].T
    assert measures.intrinsic_dimension(flat) == pytest.approx(dimension, rel=0.15)


def test_a_dimension_of_samples_that_coincide_is_unknown():
    assert np.isnan(measures.intrinsic_dimension(np.ones((50, 3))))
    assert np.isnan(measures.intrinsic_dimension(RNG.random((4, 3))))


def test_each_kind_of_collapse_is_named_and_a_healthy_encoder_is_not():
    healthy = RNG.normal(size=(64, 16)) + 1.0
    start = measure_features(healthy, None, ALL[:3])
    common = 50 * np.ones(16)
    collapsed = {
        "constant": np.full((64, 16), 0.7) + 1e-4 * RNG.normal(size=(64, 16)),
        "not finite": np.where(RNG.random((64, 1)) < 0.1, np.nan, healthy),
        "56% of the features' dimensions are the same": np.where(np.arange(16) < 9, 1.0, healthy),
        "collapsing": common + healthy[:, :1] * RNG.normal(size=16) + 0.01 * healthy,
    }
    for words, z in collapsed.items():
        assert words in str(find_collapse(measure_features(z, None, ALL[:3]), start)), words
    for z in (healthy, 0.01 * healthy, healthy + 5.0, healthy[:, :8] @ RNG.normal(size=(8, 16))):
        assert find_collapse(measure_features(z, None, ALL[:3]), start) is None
    assert "constant" in str(find_collapse(measure_features(collapsed["constant"], None, ALL[:3]), {}))
    assert find_collapse(start, {}) is None
