"""How good features are, told without labels: pure functions of the features (N, D) of N samples, in float64.

None of them knows what the features are wanted for. Each says of a run against itself whether its features are getting
richer or are collapsing; docs/evaluation.md says when to trust which.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DEAD = 1e-4
"""A dimension is dead whose standard deviation over samples is at most so many root mean squares of all features."""
FIRST_RANK, LAST_RANK = 4, 50
"""Eigenvalues that α-ReQ's line is fitted to, counted from 1 (`trange=np.arange(3, 50)` in the authors' fastssl)."""
LIDAR_RIDGE = 1e-4
"""δ of LiDAR, eq. 2: what is added to the within-class covariance."""
FEWEST = 16
SUBSETS, DRAWS = 8, 4
"""Sizes of subsets that the intrinsic dimension's line is fitted to, and draws of each."""


def rankme(features: Array) -> float:
    """RankMe (Garrido et al. 2023, eq. 1): the exponential of the entropy of the normalised singular values.

    From 1 (all features lie on one line through the origin) to min(N, D). As there, features are not centred.
    """
    return effective_rank(np.linalg.svd(features, compute_uv=False))


def effective_rank(values: NDArray[np.floating[Any]]) -> float:
    """exp(entropy) of non-negative values, normalised to sum to 1; 1 where all are zero."""
    total = values.sum()
    p = values[values > 0] / total if total > 0 else np.ones(1)
    return float(np.exp(-(p * np.log(p)).sum()))


def mean_cosine(features: Array) -> float:
    """Mean cosine over all pairs of different samples, from −1/(N − 1) to 1 (all point the same way).

    A sample whose features are zero has no direction and is left out; 1 where fewer than two have one.
    """
    norms = np.linalg.norm(features, axis=1)
    unit = features[norms > 0] / norms[norms > 0, None]  # (N', D)
    n = len(unit)
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1))) if n > 1 else 1.0


def dead_share(features: Array) -> float:
    """Share of dimensions that are (nearly) the same in all samples, see `DEAD`."""
    size = np.sqrt(np.square(features).mean())
    return float((features.std(0) <= DEAD * size).mean())


def spread(features: Array) -> float:
    """Share of the features' mean square that differs between samples: 0 for a constant encoder, 1 at zero mean."""
    total = np.square(features).sum()
    return float(np.square(features - features.mean(0)).sum() / total) if total > 0 else 0.0


def alpha_req(features: Array) -> float:
    """α-ReQ (Agrawal et al. 2022): α of the power law i^−α that the eigenvalues of the covariance fall off with.

    The line through (log i, log λ_i) of the ranks `FIRST_RANK` … `LAST_RANK`, weighted by 1/i as in the authors' code.
    Near 1 in good representations; smaller: no direction counts, larger: few do. NaN where there are too few ranks.
    """
    centred = features - features.mean(0)
    eigenvalues = np.square(np.linalg.svd(centred, compute_uv=False)) / len(features)
    eigenvalues = eigenvalues[eigenvalues > np.finfo(np.float64).eps * eigenvalues[0]]
    ranks = np.arange(FIRST_RANK, min(LAST_RANK, len(eigenvalues)) + 1)
    if len(ranks) < 2:
        return float("nan")
    slope, _ = np.polyfit(np.log(ranks), np.log(eigenvalues[ranks - 1]), 1, w=np.sqrt(1 / ranks))
    return float(-slope)


def lidar(views: Array) -> float:
    """LiDAR (Thilak et al. 2023, eq. 1–4): the effective rank of linear discriminants that tell samples apart.

    Args:
        views: (N, Q, D), the features of Q random views of each of N samples.
    Returns:
        From 1 to min(N − 1, D): directions that differ between samples and not between views of the same one.
    """
    n, q, d = views.shape
    means = views.mean(1)  # (N, D)
    between = np.cov(means, rowvar=False).reshape(d, d)
    inner = (views - means[:, None]).reshape(-1, d)
    within = inner.T @ inner / (n * (q - 1)) + LIDAR_RIDGE * np.eye(d)
    values, vectors = np.linalg.eigh(within)
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    return effective_rank(np.clip(np.linalg.eigvalsh(whiten @ between @ whiten), 0, None))


def intrinsic_dimension(features: Array, seed: int = 0) -> float:
    """Dimension d of the surface that the samples lie on, by minimum spanning trees (Costa & Hero 2004).

    The length of the tree over n samples grows as n^(1 − 1/d); the line through (log n, log length) is fitted to random
    subsets of an eighth of the samples up to all of them. NaN where samples coincide or are fewer than `FEWEST`.
    """
    n = len(features)
    if n < FEWEST:
        return float("nan")
    rng = np.random.default_rng(seed)
    square = np.square(features).sum(1)
    distances = np.sqrt(np.maximum(square[:, None] + square - 2 * features @ features.T, 0))  # (N, N)
    sizes = np.unique(np.geomspace(max(FEWEST // 2, n // 8), n, SUBSETS).astype(int))
    draws = [(size, rng.choice(n, size, replace=False)) for size in sizes for _ in range(DRAWS)]
    lengths = [tree_length(distances[np.ix_(chosen, chosen)]) for _, chosen in draws]
    if min(lengths) <= 0:
        return float("nan")
    slope, _ = np.polyfit(np.log([size for size, _ in draws]), np.log(lengths), 1)
    return float(1 / (1 - slope)) if slope < 1 else float("inf")


def tree_length(distances: Array) -> float:
    """Length of the minimum spanning tree of a matrix of distances (N, N), by Prim's algorithm."""
    nearest = distances[0].copy()  # of each sample to the tree so far
    nearest[0] = np.inf
    length = 0.0
    for _ in range(len(distances) - 1):
        joined = int(nearest.argmin())
        length += nearest[joined]
        outside = np.isfinite(nearest)
        nearest[outside] = np.minimum(nearest[outside], distances[joined][outside])
        nearest[joined] = np.inf
    return float(length)
