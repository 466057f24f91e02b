"""Gates on tiny models: the pruned model computes what the masked one does, and is smaller."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.adapters import gated_files
from edgebench.adapters.gated import GatedLora, GatedModel
from edgebench.adapters.hard_concrete import fix
from edgebench.adapters.prune import prune
from edgebench.errors import CheckpointError
from tests.adapters.gated_models import HEADS, LAYERS, batch, gated, model, randomise

KINDS = ("bert", "roberta", "distilbert", "deberta-v2", "llama", "qwen2")


def logits(made: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return made(**batch()).logits


def set_heads(made: GatedModel, *kept: tuple[int, ...]) -> GatedModel:
    """Keep these heads of each layer."""
    open_ = torch.zeros(LAYERS, HEADS, dtype=torch.bool)
    for layer, heads in enumerate(kept):
        open_[layer, list(heads)] = True
    fix(made.head_gates, open_)
    fix(made.layer_gates, torch.ones(LAYERS, dtype=torch.bool))
    return made


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.booleans(), st.sampled_from([0.4, 0.8]))
def test_a_pruned_model_computes_what_the_masked_one_does(kind, seed, merged, keep):
    made = randomise(gated(model(kind)), seed, keep)
    masked = logits(made)
    pruned = logits(prune(made, merged=merged))
    scale = max(1.0, float(masked.abs().max()))
    assert float((masked - pruned).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_closed_is_gone_from_the_parameters(kind):
    made = gated(model(kind))
    before = sum(p.numel() for p in made.model.parameters())
    set_heads(made, (0, 1), (2,), (0, 1, 2, 3))
    blocks = made.blocks
    pruned = prune(made, merged=True)
    layers = pruned.base_model.get_submodule(blocks.layers)
    width = layers[2].get_submodule(blocks.q).out_features // HEADS
    assert [layer.get_submodule(blocks.q).out_features // width for layer in layers] == [2, 1, 4]
    assert [layer.get_submodule(blocks.o).in_features // width for layer in layers] == [2, 1, 4]
    assert sum(p.numel() for p in pruned.parameters()) < before


@pytest.mark.parametrize(
    ("kept", "kv_heads"),
    [
        ((0, 1), 1),  # both of the first key-value head: the other one goes
        ((0, 2), 2),  # one of each: groups of one
        ((0, 1, 2), 2),  # two and one: uneven
        ((3,), 1),
    ],
)
def test_a_key_value_head_goes_when_all_its_query_heads_have_gone(kept, kv_heads):
    made = set_heads(gated(model("llama")), kept, (0, 1, 2, 3), kept)
    masked = logits(made)
    pruned = prune(made, merged=True)
    attention = pruned.model.layers[0].self_attn
    assert attention.k_proj.out_features == attention.v_proj.out_features == 16 * kv_heads
    assert attention.q_proj.out_features == 16 * len(kept)
    assert torch.allclose(logits(pruned), masked, atol=1e-4)


def test_a_layer_without_heads_keeps_its_feed_forward():
    made = set_heads(gated(model("bert")), (), (1,), (0, 1))
    masked = logits(made)
    pruned = prune(made, merged=False)
    assert len(pruned.bert.encoder.layer) == LAYERS
    assert not hasattr(pruned.bert.encoder.layer[0].attention.self, "query")
    assert torch.allclose(logits(pruned), masked, atol=1e-5)


def test_a_gates_value_is_folded_into_the_weights():
    made = gated(model("bert"))
    with torch.no_grad():
        made.layer_gates.log_alpha.fill_(20.0)
        made.head_gates.log_alpha.fill_(0.3)
    values = made.head_values()
    assert 0 < float(values.detach().min()) < 1
    before = made.model.get_submodule("bert.encoder.layer.0.attention.output.dense")
    weight = before.linear.weight.clone()
    pruned = prune(made, merged=False)
    after = pruned.bert.encoder.layer[0].attention.output.dense.linear.weight
    assert torch.allclose(after, weight * values[0, 0])


@pytest.mark.parametrize("which", ["layers", "heads"])
def test_gates_that_leave_nothing_are_refused(which):
    made = gated(model("bert"))
    gates = made.layer_gates if which == "layers" else made.head_gates
    fix(gates, torch.zeros(gates.log_alpha.shape, dtype=torch.bool))
    with pytest.raises(CheckpointError, match=f"all {which[:-1]} gates .*closed"):
        prune(made, merged=True)


def test_expected_counts_are_those_of_the_pruned_model_where_gates_are_certain():
    made = set_heads(gated(model("llama")), (0, 1, 2), (), (0, 3))
    made.layer_gates.log_alpha.data[1] = -20.0
    ranks = 0
    for name, part in made.factors().items():
        fix(part.gate, torch.tensor([True, False, True]))
        ranks += 2 * (".1." not in name)
    counts = made.expected()
    # Gates at log_alpha = 20 are open but for a chance in 10^8.
    assert float(counts.layers.detach()) == pytest.approx(2, abs=1e-4)
    assert float(counts.heads.detach()) == pytest.approx(5, abs=1e-4)
    assert float(counts.ranks.detach()) == pytest.approx(ranks, abs=1e-4)
    pruned = prune(made, merged=False)
    assert float(counts.parameters.detach()) == pytest.approx(
        sum(p.numel() for p in pruned.parameters()), rel=1e-5
    )


def test_every_expected_count_has_a_gradient_in_every_gate():
    made = gated(model("llama"))
    for name in ("layers", "heads", "ranks", "parameters"):
        made.zero_grad()
        getattr(made.expected(), name).backward()
        assert float(made.layer_gates.log_alpha.grad.abs().min()) > 0, name
    assert float(made.head_gates.log_alpha.grad.abs().min()) > 0
    for part in made.factors().values():
        assert float(part.gate.log_alpha.grad.abs().min()) > 0


def test_training_moves_gates_and_factors_and_leaves_the_base():
    torch.manual_seed(0)
    made = gated(model("bert")).train()
    frozen = made.model.bert.encoder.layer[0].intermediate.dense.weight.clone()
    before = {name: p.detach().clone() for name, p in made.trained().items()}
    optimiser = torch.optim.Adam(made.trained().values(), lr=0.01)
    rows = batch()
    for _ in range(2):
        counts = made.expected()
        kept = counts.layers + counts.heads + counts.ranks
        loss = made(**rows, labels=torch.tensor([0, 1, 2])).loss + 0.1 * kept
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moved = {name: not torch.equal(before[name], p) for name, p in made.trained().items()}
    assert all(moved[name] for name in moved if name.endswith("log_alpha"))
    # A layer whose gate was drawn shut gives its factors no gradient in that step.
    assert any(moved[name] for name in moved if name.endswith(".b"))
    assert any(isinstance(part, GatedLora) for part in made.modules())
    assert torch.equal(frozen, made.model.bert.encoder.layer[0].intermediate.dense.weight)


@pytest.mark.parametrize(
    ("kind", "gates"),
    [("METAS_PEFT", ("layers", "heads", "ranks")), ("DIGASE", ("layers", "ranks"))],
)
def test_what_is_saved_is_what_is_loaded(tmp_path, kind, gates):
    from safetensors.torch import load_file

    made = randomise(gated(model("bert"), gates=gates), 3)
    made.model.classifier.weight.requires_grad_(True)
    gated_files.save(made, tmp_path, kind=kind, base_name="b", task_type="SEQ_CLS")
    import json

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    members = gated_files.read_members(config, "here")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.classifier.weight" in tensors
    again = gated_files.attach(members, tensors, model("bert"), "here")
    assert torch.equal(logits(made), logits(again))


def members(**changes):
    config = {"peft_type": "METAS_PEFT", "r": 3, "lora_alpha": 6} | changes
    return gated_files.read_members(config, "here")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 0}, "rank r is 0"),
        ({"r": "x"}, "not a number"),
        ({"gates": ["depth"]}, "gates is"),
        ({"gates": []}, "gates is"),
        ({"peft_type": "DIGASE", "gates": ["heads"]}, "DIGASE has"),
        ({"stretch": [0.1, 1.1]}, "stretch"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_an_impossible_configuration_is_named(changes, said):
    with pytest.raises(CheckpointError, match=said):
        members(**changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("gates.layers"), "lacks gates.layers"),
        (lambda t: t.update(x=torch.zeros(2)), "x, which has no place"),
        (lambda t: t.update({"gates.heads": torch.zeros(3, 5)}), r"gates.heads is 3 x 5"),
    ],
)
def test_a_checkpoint_with_other_tensors_is_refused(change, said, tmp_path):
    from safetensors.torch import load_file

    made = gated(model("bert"))
    gated_files.save(made, tmp_path, kind="METAS_PEFT", base_name="b", task_type="SEQ_CLS")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        gated_files.attach(members(), tensors, model("bert"), "here")


def test_a_factor_outside_the_layers_is_refused():
    with pytest.raises(CheckpointError, match="no linear module of a layer"):
        GatedModel(model("bert"), {"classifier": 2})
