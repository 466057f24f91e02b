"""How far a graph's outputs are from PyTorch's. Pure functions over arrays.

For outputs p (PyTorch) and q (the graph), both [..., classes] in fp32: absolute error |p - q|;
cosine of the angle between p and q along the last axis; and, for logits, the Kullback-Leibler
divergence KL(softmax p || softmax q) in nats and the share of rows with the same largest logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgebench.artifact import Parity

#: Largest absolute error of an fp32 graph that still counts as the same model.
FP32_TOLERANCE = 1e-4

Array = npt.NDArray[np.floating]


def compare(
    expected: Sequence[Array],
    actual: Sequence[Array],
    *,
    reference: str,
    logits: bool,
    tolerance: float | None,
) -> Parity:
    """Summarise the differences over several outputs of one model.

    Args:
        expected: PyTorch's outputs, one array a feed, [batch, ..., classes].
        actual: the graph's, of the same shapes.
        reference: what ``expected`` is, in words.
        logits: whether the last axis holds logits (else KL and top-1 are None).
        tolerance: recorded as it is; whoever calls decides what follows from it.

    Raises:
        ValueError: shapes differ.
    """
    for wanted, got in zip(expected, actual, strict=True):
        if wanted.shape != got.shape:
            raise ValueError(f"outputs have shapes {wanted.shape} and {got.shape}")
    n = sum(len(array) for array in expected)
    p = np.concatenate([a.reshape(-1, a.shape[-1]) for a in expected]).astype(np.float64)
    q = np.concatenate([a.reshape(-1, a.shape[-1]) for a in actual]).astype(np.float64)
    error = np.abs(p - q)
    cosine = _cosine(p, q)
    classes = logits and p.shape[1] > 1
    return Parity(
        reference=reference,
        n=n,
        max_abs_error=_rounded(error.max()),
        mean_abs_error=_rounded(error.mean()),
        cosine_min=_rounded(cosine.min(), 9),
        cosine_mean=_rounded(cosine.mean(), 9),
        kl_mean=_rounded(np.maximum(_kl(p, q), 0).mean()) if classes else None,
        top1_agreement=float((p.argmax(1) == q.argmax(1)).mean()) if classes else None,
        tolerance=tolerance,
    )


def _cosine(p: Array, q: Array) -> Array:
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
    product = (p * q).sum(axis=1)
    # Two zero vectors point the same way; one zero vector points nowhere.
    same = np.where((p == q).all(axis=1), 1.0, 0.0)
    cosine: Array = np.clip(np.divide(product, norms, out=same, where=norms > 0), -1, 1)
    return cosine


def _kl(p: Array, q: Array) -> Array:
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    divergence: Array = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return divergence


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _rounded(value: float | np.floating, digits: int = 4) -> float:
    """Four significant digits: more would only record the last bits of one machine's sums."""
    return float(f"{float(value):.{digits}g}")
