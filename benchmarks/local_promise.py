"""From a latency budget to a measured artifact: does it take what the surrogate promised?

One device of ``local_samples.py`` is new: the surrogate is fitted to the others and calibrated with
5 of this one's samples. MiniLM with the bundled adapter gets hard-concrete gates over layers, heads
and ranks. They are trained on BBC News, with a loss that grows with the distance between the budget
and the latency that the surrogate gives for what the gates keep. Then they are hardened: those that
training left most open are opened as far as the surrogate's promise stays within the budget, the
others shut, and the rest of the model is trained on for a while. What is left is exported
(unmerged, as in sampling) and measured with `edgebench run`.

The promise is the surrogate's latency at the hard gates' own statistics, as it can be asked before
anything is exported. All of the training is a toy of a minute or two; accuracies show that the
gates did learn something, and no more.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local_samples
import numpy as np
from common import ROOT, Figure, Refusal, environment, table, within
from local_samples import ADAPTER, BASE, SEED, LocalDevice, Place

#: Shares of the latency that the surrogate gives for the whole model.
BUDGETS = (0.75, 0.5, 0.3)
SEQ_LEN = 128
SAMPLES = 5
#: The task's texts are cut to this: a training step is a fifth of a second a row at 128.
TEXT_TOKENS = 48
BATCH = 8
STEPS = 240
#: What a promise is held against is known better than what the surrogate was calibrated with.
LAUNCHES = 9


@dataclass(frozen=True)
class Trained:
    """What training gave: promises in ms, accuracy on held-out texts as a share."""

    budget_ms: float
    promised_ms: float
    low_ms: float | None
    high_ms: float | None
    accuracy: float
    statistics: tuple[int, int, int]

    @classmethod
    def read(cls, path: Path) -> Trained:
        document = json.loads(path.read_text())
        return cls(**{**document, "statistics": tuple(document["statistics"])})


def promise(quick: bool, whole: Any, tag: str, place: Place) -> list[Figure]:
    """Train, export and measure for each budget; the figures."""
    import torch

    torch.set_num_threads(1)
    device = next(d for d in local_samples.devices() if d.tag == tag)
    work = place.root / "promise"
    work.mkdir(exist_ok=True)
    oracle = Oracle(work, whole, device, steps=40 if quick else 1500)
    adapters, lines, figures = {}, [], []
    for share in BUDGETS[:1] if quick else BUDGETS:
        budget_ms = share * oracle.whole_ms
        where = work / f"gated-{tag}-{oracle.digest}-{100 * share:.0f}{'-quick' if quick else ''}"
        if not (where / "trained.json").exists():
            print(f"  training gates for {budget_ms:.2f} ms", file=sys.stderr)
            train(where, oracle, budget_ms, steps=3 if quick else STEPS)
        adapters[share] = where
    artifacts = {share: export(where, place, device) for share, where in adapters.items()}
    rows = measure(list(artifacts.values()), device, place)
    for row, (share, where) in zip(rows, adapters.items(), strict=True):
        said = Trained.read(where / "trained.json")
        found = artifacts[share].manifest.statistics
        kept = (found.kept_layers, found.kept_heads, found.kept_ranks)
        if kept != said.statistics:
            raise Refusal(
                f"the artifact keeps {kept}, the gates {said.statistics}: a fault of ours"
            )
        ratio = row["latency_p50_ms"] / said.promised_ms
        lines.append(
            (
                f"{100 * share:.0f} %",
                f"{said.budget_ms:.2f}",
                f"{said.promised_ms:.2f}",
                "" if said.low_ms is None else f"{said.low_ms:.2f} to {said.high_ms:.2f}",
                f"{row['latency_p50_ms']:.2f} ± {_half(row):.2f}",
                f"{ratio:.3f}",
                f"{row['latency_p50_ms'] / said.budget_ms:.3f}",
                "/".join(map(str, kept)),
                f"{100 * said.accuracy:.1f}",
                row["verdict"],
            )
        )
        note = f", {said.promised_ms:.2f} ms promised, {row['latency_p50_ms']:.2f} ms measured"
        name = f"measured over promised, {100 * share:.0f} % budget"
        figures.append(within(name, ratio, 0.1, note))
    head = (
        "budget", "ms", "promised", "90 % interval", "measured ms",
        "over promised", "over budget", "layers/heads/ranks", "accuracy %", "verdict",
    )  # fmt: skip
    print(f"{tag}, {SEQ_LEN} tokens; the whole model is promised {oracle.whole_ms:.2f} ms")
    table(head, lines)
    return figures


class Oracle:
    """A surrogate that knows the device by ``SAMPLES`` samples, and what param_bits follow from.

    The fitted surrogate is kept beside the tables that it was fitted to.
    """

    def __init__(self, work: Path, whole: Any, device: LocalDevice, steps: int) -> None:
        import hashlib

        from edgebench.surrogate import load_and_prepare_surrogate
        from edgebench.surrogate import store as surrogates
        from edgebench.surrogate.fitting import FitOptions, fit
        from edgebench.surrogate.training import TrainingOptions
        from edgebench.surrogate.workflow import calibrate_surrogate

        self.device = device
        how = f"{surrogates.SCHEMA} {steps} {STEPS}"
        digest = hashlib.sha256(whole.x.tobytes() + whole.y.tobytes() + how.encode())
        self.digest = digest.hexdigest()[:12]
        directory = work / f"surrogate-{device.tag}-{self.digest}"
        own = whole.of(device.tag)
        if not (directory / "calibration.json").exists():
            fitted = fit(
                whole.without(device.tag),
                FitOptions(TrainingOptions(steps=steps), leave_out_steps=min(steps, 700)),
            )
            surrogates.write(directory, fitted)
            samples = directory / "samples.csv"
            chosen = np.random.default_rng(SEED).choice(len(own.x), SAMPLES, replace=False)
            names = (*own.features, "latency_ms", "device")
            rows = [
                ",".join([*map(repr, own.x[i].tolist()), repr(float(own.y[i, 1])), device.tag])
                for i in chosen
            ]
            samples.write_text("\n".join([",".join(names), *rows]) + "\n")
            calibrate_surrogate(directory, [samples], directory / "calibration.json")
        cfg = {
            "surrogate": directory,
            "calibration": directory / "calibration.json",
            "metrics": ["latency_ms"],
        }
        self.surrogate, self.calibration = load_and_prepare_surrogate(cfg, device.tag)
        # The bits of an artifact follow from what is kept, whatever it takes to run: they are read
        # off the exports of this precision.
        kept = np.column_stack([np.ones(len(own.x)), own.x[:, 1:4]])
        self.bits, *_ = np.linalg.lstsq(kept, own.x[:, 4], rcond=None)
        self.whole_ms = float(self.latency_ms(self.everything(own)))

    def everything(self, own: Any) -> Any:
        import torch

        layers = float(own.x[:, 1].max())
        return torch.tensor([layers, own.x[:, 2].max(), own.x[:, 3].max()])

    def latency_ms(self, kept: Any) -> Any:
        """Latency of [3] kept layers, heads and ranks at ``SEQ_LEN`` tokens, differentiable."""
        import torch

        from edgebench.surrogate import apply_calibration

        kept = kept.double()
        bits = self.bits[0] + kept @ torch.as_tensor(self.bits[1:])
        s = torch.cat([torch.tensor([float(SEQ_LEN)]).double(), kept, bits.reshape(1)])
        said = self.surrogate(s.unsqueeze(0), self.device.tag)
        return apply_calibration(said, self.calibration)[0, 0]

    def interval(self, ms: float) -> tuple[float | None, float | None]:
        half = float(self.calibration.log_half_width[0])
        return (None, None) if np.isnan(half) else (ms * np.exp(-half), ms * np.exp(half))


def train(where: Path, oracle: Oracle, budget_ms: float, steps: int) -> None:
    """Train gates against a budget, and write the gated adapter and what was promised."""
    import torch
    from torch.nn import functional

    from edgebench.adapters import gated_files

    torch.manual_seed(SEED)
    model, tokenizer = gated_minilm()
    texts = _texts(tokenizer)
    gates = [p for n, p in model.named_parameters() if n.endswith("log_alpha")]
    rest = [p for p in model.trained().values() if not any(p is g for g in gates)]
    order = torch.randperm(len(texts["train"]["labels"]))

    def task(step: int) -> Any:
        rows = order[(step * BATCH + torch.arange(BATCH)) % len(order)]
        batch = {name: values[rows] for name, values in texts["train"].items()}
        labels = batch.pop("labels")
        return functional.cross_entropy(model(**batch).logits, labels)

    def expected() -> Any:
        counts = model.expected()
        return torch.stack([counts.layers, counts.heads, counts.ranks])

    model.train()
    of_gates = steps * 2 // 3
    optimizer = torch.optim.Adam([{"params": rest, "lr": 5e-4}, {"params": gates, "lr": 0.15}])
    for step in range(of_gates):
        # What the gates would keep if they were hardened now, with the expected counts' gradient.
        counts = expected()
        kept = counts + (torch.tensor(hard_counts(model)) - counts).detach()
        off = oracle.latency_ms(kept) / budget_ms - 1
        # Both ways: a budget is there to be used, and gates that all shrink together end shut.
        missed = 10 * off.abs() + 40 * off**2
        # Gates that are open or shut are what is exported; those between are neither.
        p = torch.cat([torch.sigmoid(g).reshape(-1) for g in gates])
        firmness = 3 * step / of_gates
        loss = task(step) + missed + firmness * (p * (1 - p)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    harden(model, oracle, budget_ms)
    optimizer = torch.optim.Adam(rest, lr=5e-4)
    for step in range(of_gates, steps):
        loss = task(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        hard = hard_counts(model)
        promised = float(oracle.latency_ms(torch.tensor(hard).double()))
        right = model(**{k: v for k, v in texts["held_out"].items() if k != "labels"}).logits
        accuracy = float((right.argmax(-1) == texts["held_out"]["labels"]).float().mean())
    gated_files.save(
        model,
        where,
        kind="GATED",
        base_name=BASE,
        task_type="SEQ_CLS",
        labels=json.loads((ADAPTER / "labels.json").read_text())["labels"],
    )
    low, high = oracle.interval(promised)
    said = Trained(budget_ms, promised, low, high, accuracy, hard)
    (where / "trained.json").write_text(json.dumps(said.__dict__, indent=2) + "\n")


def harden(model: Any, oracle: Oracle, budget_ms: float) -> None:
    """Open the gates that training left most open, as far as the budget goes; shut the others."""
    import torch

    from edgebench.adapters.hard_concrete import SHUT, HardConcrete

    gates = [part for part in model.modules() if isinstance(part, HardConcrete)]
    with torch.no_grad():
        places = sorted(
            ((float(v), i, j) for i, g in enumerate(gates) for j, v in enumerate(_flat(g))),
            reverse=True,
        )
        for gate in gates:
            gate.log_alpha.fill_(-SHUT)
        for _, i, j in places:
            _flat(gates[i])[j] = SHUT
            if oracle.latency_ms(torch.tensor(hard_counts(model))) > budget_ms:
                _flat(gates[i])[j] = -SHUT
        # An open layer without heads would keep its feed-forward, which no statistic counts.
        empty = ~(model.head_values() > 0).any(1)
        model.layer_gates.log_alpha[empty] = -SHUT


def _flat(gate: Any) -> Any:
    """A view."""
    return gate.log_alpha.view(-1)


def gated_minilm() -> tuple[Any, Any]:
    """MiniLM with the bundled adapter's factors and head, and open gates; its tokenizer."""
    import math

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from edgebench.adapters.gated import GatedModel
    from edgebench.export.base import read_base
    from edgebench.export.weights import load_tensors

    path = read_base(BASE).path
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    labels = json.loads((ADAPTER / "labels.json").read_text())["labels"]
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(labels))
    prefix = "base_model.model."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in load_tensors((ADAPTER / "adapter_model.safetensors",), "adapter").items()
    }
    modules = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
    model = GatedModel(
        base, dict.fromkeys(modules, config["r"]), scale=config["lora_alpha"] / config["r"]
    )
    with torch.no_grad():
        for module, part in model.factors().items():
            part.a.copy_(tensors.pop(f"{module}.lora_A.weight"))
            part.b.copy_(tensors.pop(f"{module}.lora_B.weight"))
        for name, value in tensors.items():
            model.model.get_parameter(name).copy_(value)
        for name, parameter in model.named_parameters():
            if name.endswith("log_alpha"):
                # Unlike each other, or what asks for fewer of them moves all alike.
                parameter.copy_(math.log(0.97 / 0.03) + torch.randn_like(parameter))
    model.model.classifier.requires_grad_(True)
    return model, AutoTokenizer.from_pretrained(path)


def hard_counts(model: Any) -> tuple[int, int, int]:
    """Layers, heads and ranks that the hard gates keep, as an artifact's statistics count them."""
    heads = model.head_values() > 0
    kept = [i for i in model.kept_layers() if bool(heads[i].any())]
    inside = ".".join(["", model.blocks.layers.rpartition(".")[2], ""])
    ranks = 0
    for module, part in model.factors().items():
        layer = int(module.partition(inside)[2].partition(".")[0])
        if layer in kept:
            ranks += int((part.gate.value() > 0).sum())
    return len(kept), int(heads[kept].sum()), ranks


def export(where: Path, place: Place, device: LocalDevice) -> Any:
    """The trained gates as an artifact of the device's precision."""
    from edgebench.export import ExportRequest
    from edgebench.export import export as export_artifacts
    from edgebench.workspace import builtin_root

    (artifact,) = export_artifacts(
        ExportRequest(
            out=place.artifacts,
            adapter=where,
            base=BASE,
            quants=(device.scheme,),
            lowering="unmerged",
            seq_len=SEQ_LEN,
            exporter_dirs=(builtin_root() / "exporters",),
        )
    )
    return artifact


def measure(artifacts: list[Any], device: LocalDevice, place: Place) -> list[dict[str, Any]]:
    """Rows of the latency table, of one interleaved run."""
    import subprocess

    command = [sys.executable, "-m", "edgebench", "run", *(str(a.path) for a in artifacts)]
    command += ["--device", device.tag, "--launches", str(LAUNCHES), "--percentile", "50"]
    command += ["--max-duration", "20", "--accuracy", "none", "--json"]
    done = subprocess.run(
        command, cwd=place.root, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Refusal(f"`edgebench run` failed: {words}")
    rows = {row["artifact_digest"]: row for row in json.loads(done.stdout)["latency"]}
    return [dict(rows[artifact.manifest.digest]) for artifact in artifacts]


def _half(row: dict[str, Any]) -> float:
    return float(row["latency_p50_ms_hi"] - row["latency_p50_ms_lo"]) / 2


def _texts(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Token ids, masks and labels of training texts and of 100 held-out ones."""
    import torch

    sys.path.append(str(ROOT / "examples"))
    import bbc_news

    split = bbc_news.load()
    found = {}
    for name, examples in (("train", split.train), ("held_out", split.held_out[:100])):
        encoded = tokenizer(
            [example.text for example in examples],
            truncation=True,
            padding="max_length",
            max_length=TEXT_TOKENS,
            return_tensors="pt",
        )
        found[name] = {**encoded, "labels": torch.tensor([e.label for e in examples])}
    return found
