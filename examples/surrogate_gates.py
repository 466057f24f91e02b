"""Gates that learn to meet a latency budget through the surrogate, with no device in the loop.

    python examples/surrogate_gates.py                    # a made-up device family: seconds
    python examples/surrogate_gates.py --surrogate DIR --device TAG --budget-ms 40

A toy network of 12 residual blocks, each with 4 heads' worth of hidden units and a low-rank branch,
is trained on made-up data. Hard-concrete gates close blocks, heads and ranks. Each step asks the
surrogate what the model would take, at the *expected* statistics vector s: sums of probabilities,
differentiable, never rounded. The loss is the task's plus what the latency is over the budget.

Without ``--surrogate`` the family is made up in this file, and its latencies are no measurements.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebench.adapters.hard_concrete import HardConcrete
from edgebench.surrogate import apply_calibration, load_and_prepare_surrogate
from edgebench.surrogate.columns import STATISTICS
from edgebench.surrogate.fitting import FitOptions
from edgebench.surrogate.training import TrainingOptions
from edgebench.surrogate.workflow import fit_surrogate

BLOCKS, HEADS, RANKS, WIDTH = 12, 4, 8, 16
SEQ_LEN = 128
HEAD_BITS, RANK_BITS, FIXED_BITS = 32 * 2 * WIDTH * 8, 32 * 2 * WIDTH, 32 * 10_000


class Gated(nn.Module):
    """The toy network: [B, WIDTH] -> two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(BLOCKS, HEADS, WIDTH, 8) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(BLOCKS, HEADS, 8, WIDTH) / 32**0.5)
        self.a = nn.Parameter(torch.randn(BLOCKS, WIDTH, RANKS) / WIDTH**0.5)
        self.b = nn.Parameter(torch.zeros(BLOCKS, RANKS, WIDTH))
        self.out = nn.Linear(WIDTH, 2)
        self.layers = HardConcrete(BLOCKS)
        self.heads = HardConcrete(BLOCKS, HEADS)
        self.ranks = HardConcrete(BLOCKS, RANKS)

    def forward(self, x: Tensor) -> Tensor:
        layers, heads, ranks = self.layers(), self.heads(), self.ranks()
        for i in range(BLOCKS):
            hidden = functional.silu(torch.einsum("bw,hwk->bhk", x, self.up[i]))
            update = torch.einsum("bhk,hkw,h->bw", hidden, self.down[i], heads[i])
            update = update + ((x @ self.a[i]) * ranks[i]) @ self.b[i]
            x = x + layers[i] * update
        logits: Tensor = self.out(x)
        return logits

    def statistics(self) -> Tensor:
        """The expected s, [5], in the order of STATISTICS; differentiable in every gate."""
        layers = self.layers.expected()
        heads = layers @ self.heads.expected().sum(1)
        ranks = layers @ self.ranks.expected().sum(1)
        bits = FIXED_BITS + HEAD_BITS * heads + RANK_BITS * ranks
        return torch.stack([torch.tensor(float(SEQ_LEN)), layers.sum(), heads, ranks, bits])


@dataclass(frozen=True)
class Outcome:
    """Latencies in ms that the surrogate promised, accuracy as a share, gates' gradients."""

    latency_before_ms: float
    latency_after_ms: float
    accuracy: float
    layers_before: float
    layers_after: float
    first_gradient: float


def made_up_surrogate(directory: Path, steps: int = 400) -> Path:
    """A surrogate of three made-up devices; latency alone."""
    rng = np.random.default_rng(0)
    lines = [",".join(("device", *STATISTICS, "latency_ms"))]
    for tag, (fixed, layer, head) in {
        "made-up-a": (4.0, 2.0, 0.5),
        "made-up-b": (2.0, 3.0, 0.3),
        "made-up-c": (6.0, 1.5, 0.8),
    }.items():
        for _ in range(200):
            layers = int(rng.integers(0, BLOCKS + 1))
            heads = int(rng.integers(0, HEADS * layers + 1))
            ranks = int(rng.integers(0, RANKS * layers + 1))
            bits = FIXED_BITS + HEAD_BITS * heads + RANK_BITS * ranks
            ms = (fixed + layer * layers + head * heads + 0.02 * ranks) * rng.lognormal(0, 0.01)
            lines.append(f"{tag},{SEQ_LEN},{layers},{heads},{ranks},{bits},{ms}")
    table = directory / "made-up.csv"
    table.write_text("\n".join(lines) + "\n")
    options = FitOptions(TrainingOptions(steps=steps, batch=256), leave_out=False)
    return fit_surrogate([table], directory / "surrogate", options=options).path


def train(surrogate_dir: Path, device: str, budget_ms: float, steps: int, seed: int = 0) -> Outcome:
    """Train the toy network and its gates against a budget."""
    torch.manual_seed(seed)
    cfg = {"surrogate": surrogate_dir, "metrics": ["latency_ms"]}
    surrogate, calibration = load_and_prepare_surrogate(cfg, device)
    model = Gated()
    inputs = torch.randn(2000, WIDTH)
    labels = (inputs[:, 0] * inputs[:, 1] + inputs[:, 2] > 0).long()
    gates = [p for n, p in model.named_parameters() if n.endswith("log_alpha")]
    rest = [p for n, p in model.named_parameters() if not n.endswith("log_alpha")]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 3e-3}, {"params": gates, "lr": 3e-2}])

    def latency_ms() -> Tensor:
        promised = surrogate(model.statistics().unsqueeze(0), device)
        return apply_calibration(promised, calibration)[0, 0]

    with torch.no_grad():
        before, layers_before = float(latency_ms()), float(model.layers.expected().sum())
    first = 0.0
    for step in range(steps):
        rows = torch.randint(len(inputs), (128,))
        task = functional.cross_entropy(model(inputs[rows]), labels[rows])
        # Squared, so that the last millisecond pulls gently; relative, so that it has no unit.
        over = functional.relu(latency_ms() / budget_ms - 1)
        optimizer.zero_grad()
        (task + 5 * over + 20 * over**2).backward()
        if step == 0:
            gradient = torch.autograd.grad(latency_ms(), gates)
            first = min(float(g.abs().min()) for g in gradient)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = float((model(inputs).argmax(1) == labels).float().mean())
        after = float(latency_ms())
        kept = float(model.layers.expected().sum())
    return Outcome(before, after, accuracy, layers_before, kept, first)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surrogate", type=Path)
    parser.add_argument("--device", default="made-up-a")
    parser.add_argument("--budget-ms", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        where = given.surrogate or made_up_surrogate(Path(temporary))
        found = train(where, given.device, given.budget_ms, given.steps)
    print(f"promised latency  {found.latency_before_ms:.1f} -> {found.latency_after_ms:.1f} ms")
    print(f"expected layers   {found.layers_before:.1f} -> {found.layers_after:.1f}")
    print(f"accuracy          {100 * found.accuracy:.1f} %")
    print(f"smallest gradient of a gate at the first step: {found.first_gradient:.2e} ms")
    return 0 if found.latency_after_ms <= 1.02 * given.budget_ms else 1


if __name__ == "__main__":
    raise SystemExit(main())
