"""Training the network: mixup on the device tag, and leave-one-device-out episodes.

Every step has two parts.

- **Supervised.** Rows of all devices; each is mixed with a row of another device, features, tag and
  log target alike, with a weight from Beta(α, α) (mixup, Zhang et al. 2018, arXiv:1710.09412). The
  weight is drawn near 0 or 1 for small α, so most rows stay almost what they were.
- **Episode.** One device is held out: its tag is replaced with the mean of the others' (what a new
  device starts from), a scale and a shift of the log prediction are fitted to a few of its rows in
  closed form, and the error on other rows of it is the loss. The fit is differentiable, so the
  trunk learns to be a good start for a device that it has not seen (leave-one-domain-out
  meta-learning, Li et al. 2018, arXiv:1710.03463, with a closed-form inner step, Bertinetto et al.
  2019, arXiv:1805.08136).

Losses are Huber's on standardised log targets, so that one wild measurement does not bend the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgebench.surrogate import work
from edgebench.surrogate.columns import STATISTICS
from edgebench.surrogate.network import SurrogateNet

#: With fewer, what is held out of them says nothing, and work alone is taken where it applies.
FEWEST_CONFIGURATIONS = 10
WORTH_A_TRUNK = 0.95


@dataclass(frozen=True)
class TrainingOptions:
    """How the network is trained; the defaults are what docs/surrogate.md has figures of."""

    steps: int = 2000
    batch: int = 512
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    mixup_alpha: float = 0.1
    mixup_share: float = 0.3
    episode_weight: float = 0.1
    support: int = 10
    seed: int = 0


def train(
    x: Tensor,
    device: Tensor,
    log_y: Tensor,
    n_devices: int,
    options: TrainingOptions,
    report: Callable[[float], None] | None = None,
    worked: Sequence[bool] = (),
) -> SurrogateNet:
    """Train a network.

    Args:
        x: features [N, F]. device: their device's index [N]. log_y: [N, M], NaN: not measured.
        worked: for each metric, whether it adds up over work (``work.py``).
        report: called with the share of the steps that is done.

    Returns:
        The network, in evaluation mode, on the CPU.
    """
    say = report or (lambda share: None)
    if not any(worked):
        return _train(x, device, log_y, n_devices, options, say, worked, ())
    first, second = (lambda s: say(s / 2)), (lambda s: say((1 + s) / 2))  # two trainings
    mute = _explained_by_work(x, device, log_y, n_devices, options, first, worked)
    return _train(x, device, log_y, n_devices, options, second, worked, mute)


def _explained_by_work(
    x: Tensor,
    device: Tensor,
    log_y: Tensor,
    n_devices: int,
    options: TrainingOptions,
    say: Callable[[float], None],
    worked: Sequence[bool],
) -> tuple[int, ...]:
    """Metrics that are predicted at least as well by their work alone.

    A fifth of the configurations is held out on all devices; the trunk has to lower the mean
    absolute error of the logarithm there to ``WORTH_A_TRUNK`` of it, or it has learned noise.
    """
    metrics = tuple(m for m, there in enumerate(worked) if there)
    _, index = np.unique(x[:, : len(STATISTICS) - 1].numpy(), axis=0, return_inverse=True)
    n = int(index.max()) + 1
    if n < FEWEST_CONFIGURATIONS:
        return metrics
    order = np.random.default_rng(options.seed).permutation(n)
    out = torch.from_numpy((order < n // 5)[index.reshape(-1)])
    net = _train(x[~out], device[~out], log_y[~out], n_devices, options, say, worked, ())
    tag = torch.eye(n_devices)[device[out]]
    with torch.no_grad():
        whole = (net(x[out], tag) - log_y[out]).abs().nanmean(0)
        alone = (net.log_work(x[out], tag) + tag @ net.mean - log_y[out]).abs().nanmean(0)
    return tuple(m for m in metrics if not whole[m] < WORTH_A_TRUNK * alone[m])


def _train(
    x: Tensor,
    device: Tensor,
    log_y: Tensor,
    n_devices: int,
    options: TrainingOptions,
    say: Callable[[float], None],
    worked: Sequence[bool],
    mute: Sequence[int],
) -> SurrogateNet:
    """A network whose trunk is silent for the metrics in ``mute``."""
    generator = torch.Generator().manual_seed(options.seed)
    mixing = np.random.default_rng(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = SurrogateNet(x.shape[1], n_devices, log_y.shape[1], worked=worked)
    net.scaling.set_from(x)
    _set_rates(net, x, device, log_y)
    one_hot = torch.eye(n_devices)
    # What work does not explain; all of it, where nothing is explained so.
    rest = log_y - net.log_work(x, one_hot[device])
    _set_levels(net, device, rest)
    net.amplitude[:, list(mute)] = 0.0
    rest[:, list(mute)] = torch.nan
    if len(mute) == log_y.shape[1]:
        return net.eval()
    decay = [p for n, p in net.named_parameters() if p.ndim > 1 and n != "tags"]
    free = [p for n, p in net.named_parameters() if p.ndim <= 1 or n == "tags"]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": options.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.learning_rate, total_steps=options.steps, pct_start=0.1
    )
    rows = [torch.nonzero(device == d).flatten() for d in range(n_devices)]
    for step in range(options.steps):
        loss = _supervised(net, x, device, rest, one_hot, options, generator, mixing)
        if n_devices > 2 and options.episode_weight > 0:
            held_out = int(torch.randint(n_devices, (1,), generator=generator))
            loss = loss + options.episode_weight * _episode(
                net, x[rows[held_out]], rest[rows[held_out]], held_out, options, generator
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            say(step / options.steps)
    return net.eval()


def _set_rates(net: SurrogateNet, x: Tensor, device: Tensor, log_y: Tensor) -> None:
    """What work costs on each device."""
    for m in (m for m, worked in enumerate(net.worked) if worked):
        for d in range(net.rates.shape[0]):
            rows = (device == d) & torch.isfinite(log_y[:, m])
            if rows.any():
                y = np.exp(log_y[rows, m].double().numpy())
                net.rates[d, m] = torch.as_tensor(work.fit(x[rows].double().numpy(), y))


def _set_levels(net: SurrogateNet, device: Tensor, log_y: Tensor) -> None:
    """Each device's mean and spread of the log targets, so that the trunk sees like by like."""
    for d in range(net.mean.shape[0]):
        for m in range(net.mean.shape[1]):
            values = log_y[device == d, m]
            values = values[torch.isfinite(values)]
            if len(values):
                net.mean[d, m] = values.mean()
            if len(values) > 1:
                net.amplitude[d, m] = values.std(correction=0).clamp_min(1e-3)


def _supervised(
    net: SurrogateNet,
    x: Tensor,
    device: Tensor,
    rest: Tensor,
    one_hot: Tensor,
    options: TrainingOptions,
    generator: torch.Generator,
    mixing: np.random.Generator,
) -> Tensor:
    n = min(options.batch, len(x))
    first = torch.randint(len(x), (n,), generator=generator)
    other = torch.randint(len(x), (n,), generator=generator)
    drawn = mixing.beta(options.mixup_alpha, options.mixup_alpha, n)
    share = torch.from_numpy(np.maximum(drawn, 1 - drawn)).to(x.dtype)
    mixed = torch.rand(n, generator=generator) < options.mixup_share
    share = torch.where(mixed, share, torch.ones(n)).unsqueeze(1)
    # Of a row that lacks a target, the mixture lacks it too; unmixed rows must not get it.
    target = torch.where(share == 1.0, rest[first], share * rest[first] + (1 - share) * rest[other])
    s = share * x[first] + (1 - share) * x[other]
    tag = share * one_hot[device[first]] + (1 - share) * one_hot[device[other]]
    return _huber(net(s, tag), net.log_work(s, tag) + target, tag @ net.amplitude)


def _episode(
    net: SurrogateNet,
    x: Tensor,
    rest: Tensor,
    held_out: int,
    options: TrainingOptions,
    generator: torch.Generator,
) -> Tensor:
    n_devices = net.mean.shape[0]
    if len(x) < 2 * options.support:
        return x.new_zeros(())
    chosen = torch.randperm(len(x), generator=generator)[: options.support + 64]
    tag = torch.full((1, n_devices), 1.0 / (n_devices - 1))
    tag[0, held_out] = 0.0
    there = torch.isfinite(rest[chosen]).all(0)
    if not there.any():
        return x.new_zeros(())
    own = torch.zeros_like(tag)
    own[0, held_out] = 1.0
    log_y = net.log_work(x[chosen], own.expand(len(chosen), -1)) + rest[chosen]
    predicted = net(x[chosen], tag.expand(len(chosen), -1))[:, there]
    target = log_y[:, there]
    support, query = slice(None, options.support), slice(options.support, None)
    p, t = predicted[support], target[support]
    p0, t0 = p.mean(0), t.mean(0)
    ridge = 0.1 * options.support * net.amplitude[held_out, there] ** 2
    covariance = ((p - p0) * (t - t0)).sum(0) + ridge
    slope = covariance / (((p - p0) ** 2).sum(0) + ridge)
    calibrated = t0 + slope * (predicted[query] - p0)
    return _huber(calibrated, target[query], net.amplitude[held_out, there])


def _huber(predicted: Tensor, target: Tensor, unit: Tensor) -> Tensor:
    there = torch.isfinite(target)
    if not there.any():
        return predicted.sum() * 0.0
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))  # 0 where the trunk is silent
    error = (predicted - torch.where(there, target, predicted.detach())) / unit
    return functional.huber_loss(error[there], torch.zeros_like(error[there]), delta=0.5)
