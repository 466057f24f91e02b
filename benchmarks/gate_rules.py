"""What others do with the same numbers: decisions [replays] from samples a and b, [replays, n].

Sources: asv 0.6.6 ``_stats.is_different`` (Mann-Whitney U, p < 0.002) and ``--factor`` (1.1) of
``asv continuous``; pytest-benchmark's ``--benchmark-compare-fail=mean:3%``;
github-action-benchmark's ``alert-threshold`` on the means (its default: 200 %); Welch's t-test on
logarithms at p < 0.01, one-sided.
"""

from __future__ import annotations

import numpy as np


def asv(a: np.ndarray, b: np.ndarray, factor: float = 1.1) -> np.ndarray:
    from scipy.stats import mannwhitneyu

    p = mannwhitneyu(a, b, axis=-1, method="asymptotic").pvalue
    return (p < 0.002) & (np.median(b, axis=-1) > factor * np.median(a, axis=-1))


def asv_3(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return asv(a, b, 1.03)


def pytest_benchmark(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(b.mean(axis=-1) > 1.03 * a.mean(axis=-1))


def github_action(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(b.mean(axis=-1) > 2.0 * a.mean(axis=-1))


def t_test(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.stats import ttest_ind

    found = ttest_ind(np.log(b), np.log(a), axis=-1, equal_var=False, alternative="greater")
    return np.asarray(found.pvalue < 0.01)


RULES = {
    "asv, factor 1.1": asv,
    "asv, factor 1.03": asv_3,
    "pytest-benchmark, mean:3%": pytest_benchmark,
    "github-action, 200 %": github_action,
    "t-test, p < 0.01": t_test,
}
