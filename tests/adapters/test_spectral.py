"""Spectral directions: the formula, the states, and what is left when they are hard."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.adapters import integer, spectral, spectral_files
from edgebench.adapters.spectral import FP16, INT8, OFF, Spectral
from edgebench.errors import CheckpointError
from tests.adapters.gated_models import batch, model

R, WIDTH = 6, 5


def adapted(kind: str, states: bool, width: int | None = WIDTH, seed: int = 0):
    """A tiny model with random directions on its feed-forward's last matrix."""
    module = model(kind)
    blocks = spectral.blocks_of(module.config.model_type)
    role = blocks.feed_forward[-1]
    parts = spectral.put_directions(module, role, directions=R, width=width, states=states)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in parts.values():
            for p in (part.u, part.s, part.layer_gate, part.state_logits):
                if p is not None:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return module.eval(), parts, role


def logits(module):
    with torch.inference_mode():
        return module(**batch()).logits


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["bert", "llama"]), st.booleans(), st.integers(0, 10**6))
def test_what_is_left_computes_what_hard_directions_do(kind, states, seed):
    module, parts, _ = adapted(kind, states, seed=seed)
    # Rounding activations makes steps of last bits, which differ between one product and two.
    with integer.exact_activations():
        expected = logits(module)
        left = spectral.harden(module, parts.items(), merged=False)
        assert torch.allclose(
            logits(left), expected, atol=1e-5 * max(1, float(expected.abs().max()))
        )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_what_is_left_of_one_module_is_what_it_computes_with_rounded_activations(seed):
    torch.manual_seed(seed)
    controller = spectral.Controller(24, WIDTH, R)
    part = Spectral(torch.nn.Linear(24, 9), R, controller, states=True).eval()
    with torch.no_grad():
        for parameter in (part.u, part.layer_gate, part.state_logits):
            parameter.copy_(torch.randn(parameter.shape))
    x = torch.randn(2, 5, 24)
    with torch.inference_mode():
        expected, found = part(x), spectral.HardSpectral(part)(x)
    # One activation that is rounded to its neighbour moves a direction by 1/255 of its range.
    step = 0.0
    if len(kept := torch.nonzero(part.states() == INT8).flatten()):
        inner = x @ part.v[kept].T
        step = float(inner.abs().max() * part.s[kept].abs().max() * part.u[:, kept].abs().max())
    assert float((expected - found).abs().max()) <= step / 255 + 1e-5


def test_the_update_is_the_formula():
    linear = torch.nn.Linear(7, 5)
    controller = spectral.Controller(7, WIDTH, R)
    part = Spectral(linear, R, controller, states=False).eval()
    torch.nn.init.normal_(part.u)
    torch.nn.init.normal_(part.layer_gate)
    x = torch.randn(2, 3, 7)
    token = torch.sigmoid(x @ controller.down.weight.T @ controller.up.weight.T)
    gate = token * torch.sigmoid(part.layer_gate)
    wanted = linear(x).clone()
    for b in range(2):
        for t in range(3):
            directions = part.u @ torch.diag(gate[b, t] * part.s) @ part.v
            wanted[b, t] += directions @ x[b, t]
    assert torch.allclose(part(x), wanted, atol=1e-5)


def test_directions_that_are_off_are_gone_and_int8_ones_have_255_values():
    module, parts, _ = adapted("bert", states=True)
    part = next(iter(parts.values()))
    with torch.no_grad():
        part.state_logits.zero_()
        for index, state in enumerate((OFF, INT8, FP16, OFF, INT8, OFF)):
            part.state_logits[index, state] = 5.0
    assert part.kept().tolist() == [1, 2, 4]
    assert part.counts() == {"off": 3, "int8": 2, "fp16": 1}
    assert spectral.counts(module)["off"] == 3 + sum(
        other.counts()["off"] for other in list(parts.values())[1:]
    )
    name = next(iter(parts))
    left = spectral.harden(module, parts.items(), merged=False).get_submodule(name)
    half, whole = left.branches
    assert torch.equal(half.v.weight, part.v[2:3].half().float())
    assert half.up.weight.shape == (1, WIDTH)
    codes = whole.v.weight_quantized.t().float() - integer.ZERO_POINT
    assert codes.shape == (2, part.v.shape[1])
    assert float(codes.abs().max()) == 127
    steps = part.v[[1, 4]].abs().amax(1) / 127
    assert torch.allclose(codes * steps[:, None], part.v[[1, 4]], atol=float(steps.max()) / 1.99)
    assert torch.allclose(whole.v.weight_scale, steps)


def test_one_gate_for_all_tokens_can_be_merged_and_a_gate_a_token_can_not():
    module, parts, _ = adapted("bert", states=False, width=None)
    expected = logits(module)
    merged = spectral.harden(module, parts.items(), merged=True)
    assert not any(isinstance(m, Spectral | spectral.HardSpectral) for m in merged.modules())
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    module, parts, _ = adapted("bert", states=False)
    with pytest.raises(CheckpointError, match="can't be folded"):
        spectral.harden(module, parts.items(), merged=True)


def test_training_reaches_states_controller_and_directions():
    module, parts, _ = adapted("bert", states=True)
    module.train()
    module(**batch(), labels=torch.tensor([0, 1, 2])).loss.backward()
    for part in parts.values():
        for p in (part.u, part.s, part.v, part.layer_gate, part.state_logits):
            assert float(p.grad.abs().max()) > 0
        assert float(part.controller.down.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(("kind", "width"), [("HEST", WIDTH), ("TABS", WIDTH), ("BHSP", None)])
def test_what_is_saved_is_what_is_loaded(kind, width, tmp_path):
    from safetensors.torch import load_file

    module, parts, role = adapted("bert", states=kind == "HEST", width=width)
    module.classifier.weight.requires_grad_(True)
    spectral_files.save(
        module, parts, tmp_path, kind=kind, module=role, base_name="b", task_type="SEQ_CLS"
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    members = spectral_files.read_members(config, "here")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    again = model("bert")
    spectral_files.attach(members, tensors, again, "here")
    assert torch.equal(logits(again), logits(module))
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    assert len(spectral_files.sites(shapes)) == 3
    assert list(spectral_files.own_parameters(shapes)) == ["classifier.weight"]
    del tensors[next(name for name in tensors if name.endswith("spectral_s"))]
    with pytest.raises(CheckpointError, match=r"lacks .*spectral_s"):
        spectral_files.attach(members, tensors, model("bert"), "here")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"directions": 0}, "directions is 0"),
        ({"width": None}, "width is None"),
        ({"module": None}, "does not name the module"),
    ],
)
def test_an_impossible_configuration_is_named(changes, said):
    config = {"peft_type": "TABS", "directions": 4, "width": 3, "module": "output.dense"} | changes
    with pytest.raises(CheckpointError, match=said):
        spectral_files.read_members(config, "here")


def test_a_direction_that_fp16_can_not_hold_is_refused(tmp_path):
    from safetensors.torch import load_file

    module, parts, role = adapted("bert", states=True)
    with torch.no_grad():
        next(iter(parts.values())).u[0, 0] = 1e6
    spectral_files.save(
        module, parts, tmp_path, kind="HEST", module=role, base_name="b", task_type="SEQ_CLS"
    )
    stored = load_file(tmp_path / "adapter_model.safetensors")
    members = spectral_files.Members("HEST", R, WIDTH, role)
    with pytest.raises(CheckpointError, match="too large for fp16"):
        spectral_files.attach(members, stored, model("bert"), "here")
