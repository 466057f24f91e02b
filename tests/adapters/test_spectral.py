"""Spectral directions: the formula, the states, and what is left when they are hard."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.adapters import spectral, spectral_files
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
    expected = logits(module)
    left = spectral.harden(module, parts.items(), merged=False)
    assert torch.allclose(logits(left), expected, atol=1e-5 * max(1, float(expected.abs().max())))


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
    kept, v, _ = part.hard()
    assert kept.tolist() == [1, 2, 4]
    steps = v[0] / (v[0].abs().max() / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert torch.equal(v[1], part.v[2])
    name = next(iter(parts))
    left = spectral.harden(module, parts.items(), merged=False)
    assert left.get_submodule(name).v.weight.shape == (3, part.v.shape[1])
    assert left.get_submodule(name).up.weight.shape == (3, WIDTH)


def test_one_gate_for_all_tokens_can_be_merged_and_a_gate_a_token_can_not():
    module, parts, _ = adapted("bert", states=False, width=None)
    expected = logits(module)
    merged = spectral.harden(module, parts.items(), merged=True)
    assert not any(isinstance(m, Spectral | spectral.HardSpectral) for m in merged.modules())
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    module, parts, _ = adapted("bert", states=False)
    with pytest.raises(CheckpointError, match="can't be folded"):
        spectral.harden(module, parts.items(), merged=True)


@given(st.integers(0, 10**6))
def test_rounding_to_int8_is_within_half_a_step_and_keeps_the_gradient(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(3, 8, generator=generator, requires_grad=True)
    rounded = spectral.to_int8(vectors, 1)
    step = vectors.detach().abs().amax(1, keepdim=True) / 127
    assert bool(((rounded - vectors).detach().abs() <= step / 2 * 1.001 + 1e-7).all())
    rounded.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))
    assert torch.equal(spectral.to_int8(torch.zeros(2, 3), 1), torch.zeros(2, 3))


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
