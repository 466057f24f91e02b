"""Backbones with random weights, and untrained adapters on them, for ``adapter_matrix.py``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT

sys.path.insert(0, str(ROOT / "examples"))

LABELS = 5
#: Names of what stands before or in a model's head and has no weights in a bare base.
HEADS = ("classifier", "pre_classifier", "pooler.dense", "score")


@dataclass(frozen=True)
class Backbone:
    """A class of configuration and its members, with what to call the shape."""

    kind: str
    sizes: Mapping[str, Any]
    shape: str

    @property
    def token_types(self) -> bool:
        """Whether it takes MiniLM's token types too."""
        return self.kind in {"BertConfig", "DebertaV2Config"}


def _small(kind: str, width: int, layers: int, **more: Any) -> Backbone:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        **more,
    }
    return Backbone(kind, sizes, f"{layers} x {width}")


_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}

#: Small ones of each architecture; widths and depths differ on purpose.
BACKBONES = {
    "BERT": _small("BertConfig", 64, 2),
    "DistilBERT": Backbone(
        "DistilBertConfig", {"dim": 96, "n_heads": 4, "hidden_dim": 192, "n_layers": 3}, "3 x 96"
    ),
    "RoBERTa": _small("RobertaConfig", 128, 2),
    "DeBERTa-v2/v3": _small("DebertaV2Config", 64, 2, **_DEBERTA),
    "Llama GQA": _small("LlamaConfig", 64, 2, num_key_value_heads=2, head_dim=16),
    "TinyBERT-4L-312": Backbone(
        "BertConfig",
        {
            "hidden_size": 312,
            "num_attention_heads": 12,
            "intermediate_size": 1200,
            "num_hidden_layers": 4,
        },
        "4 x 312, as published",
    ),
}

#: Published shapes that an adapter file goes on as it is, where it fits any (see make_backbone.py).
PUBLISHED = {"DistilBERT-base": "distilbert-base", "RoBERTa-base": "roberta-base"}


def random_backbone(name: str, scratch: Path) -> Path:
    """A bare model with random weights and MiniLM's words; made once."""
    import make_backbone
    import torch
    import transformers
    from train_minilm_bbc import base_directory

    directory = scratch / name.replace("/", "-").replace(" ", "-")
    if directory.exists():
        return directory
    if name in PUBLISHED:
        return make_backbone.make(PUBLISHED[name], directory, head="none")
    backbone = BACKBONES[name]
    torch.manual_seed(0)
    common = {"vocab_size": 30522, "max_position_embeddings": 514, "pad_token_id": 0}
    config = getattr(transformers, backbone.kind)(**common, **backbone.sizes)
    config.edgebench_random_weights = True
    transformers.AutoModel.from_config(config).save_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_directory(), local_files_only=True)
    if not backbone.token_types:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(directory)
    return directory


def fits_as_it_is(adapter: Path, base: Path) -> bool:
    """Whether the trained file itself can go on this base."""
    from edgebench.errors import CheckpointError
    from edgebench.export.base import read_base
    from edgebench.export.checkpoint import read_adapter
    from edgebench.export.exporter import find_exporter
    from edgebench.export.family import FamilyExporter
    from edgebench.workspace import Workspace

    read = read_adapter(adapter)
    exporter = find_exporter(Workspace.find().exporter_dirs(), read).exporter
    if not isinstance(exporter, FamilyExporter):
        return False  # PEFT's methods name modules and sizes
    try:
        exporter.inspect(read, read_base(str(base)))
    except CheckpointError:
        return False
    return True


def untrained(adapter: Path, base: Path, directory: Path) -> Path:
    """An adapter of the same kind and sizes for another base, its parameters random.

    Raises:
        CheckpointError: the base has not what this kind of adapter changes.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from edgebench.adapters import gated_files, spectral_files
    from edgebench.export.checkpoint import read_adapter
    from edgebench.export.exporter import find_exporter
    from edgebench.export.family import FamilyExporter
    from edgebench.workspace import Workspace

    read = read_adapter(adapter)
    exporter = find_exporter(Workspace.find().exporter_dirs(), read).exporter
    torch.manual_seed(1)
    module = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=LABELS, local_files_only=True, attn_implementation="eager"
    )
    if isinstance(exporter, FamilyExporter):
        _own(exporter, read.config, module, directory)
    elif read.config["peft_type"] in gated_files.FAMILIES:
        _gated(read, module, directory)
    elif read.config["peft_type"] in spectral_files.FAMILIES:
        _spectral(read.config, module, directory)
    else:
        _peft(read.config, module, directory)
    return directory


def _own(exporter: Any, config: Mapping[str, Any], module: Any, directory: Path) -> None:
    from edgebench.adapters import base as torch_side

    members = {name: config[name] for name in exporter.members if name in config}
    made = exporter.module(members, torch_side.sites_of(module, members["targets"]))
    _shake(made.parameters())
    made.eval()
    head = {} if made.head(module) else _head(module)
    torch_side.save(directory, made, head=head, task_type="SEQ_CLS", base_name="random")


def _gated(read: Any, module: Any, directory: Path) -> None:
    """The same gates and ranks on the same projections; a third of all gates shut."""
    import torch

    from edgebench.adapters import gated_files, lora
    from edgebench.adapters.blocks import blocks_of
    from edgebench.adapters.gated import GatedModel
    from edgebench.adapters.hard_concrete import HardConcrete, fix

    members = gated_files.read_members(read.config, str(read.path))
    factors = lora.linear_factors({name: t.shape for name, t in read.shapes.items()})
    roles = {_role(factor.module): factor.rank for factor in factors}
    blocks = blocks_of(module.config.model_type)
    modules = {
        name: rank
        for name, _ in module.named_modules()
        for role, rank in roles.items()
        if name.endswith(f".{getattr(blocks, role)}")
    }
    made = GatedModel(module, modules, gates=members.gates, scale=members.scale)
    _shake(part for factor in made.factors().values() for part in (factor.a, factor.b))
    for gate in (part for part in made.modules() if isinstance(part, HardConcrete)):
        numbers = torch.arange(gate.log_alpha.numel()).reshape(gate.log_alpha.shape)
        fix(gate, numbers % 3 != 1)
    for parameter in _head(module).values():
        parameter.requires_grad_(True)
    gated_files.save(made, directory, kind=members.kind, base_name="random", task_type="SEQ_CLS")


def _spectral(config: Mapping[str, Any], module: Any, directory: Path) -> None:
    """The same directions on the same module; where they have states, a third of each."""
    import torch

    from edgebench.adapters import spectral, spectral_files
    from edgebench.adapters.blocks import blocks_of

    members = spectral_files.read_members(config, "adapter_config.json")
    role = blocks_of(module.config.model_type).feed_forward[-1]
    states = members.kind == "HEST"
    parts = spectral.put_directions(
        module, role, directions=members.directions, width=members.width, states=states
    )
    for part in parts.values():
        _shake((part.u, part.v, part.s, part.layer_gate))
        if part.state_logits is not None:
            of_each = torch.arange(members.directions) % 3
            part.state_logits.data = 20.0 * torch.nn.functional.one_hot(of_each, 3).float()
    for parameter in _head(module).values():
        parameter.requires_grad_(True)
    spectral_files.save(
        module,
        parts,
        directory,
        kind=members.kind,
        module=role,
        base_name="random",
        task_type="SEQ_CLS",
    )


def _peft(config: Mapping[str, Any], module: Any, directory: Path) -> None:
    import peft

    from edgebench.adapters.sites import ARCHITECTURES

    options = dict(config)
    names = ARCHITECTURES[module.config.model_type][1]
    for member in ("target_modules", "feedforward_modules"):
        if isinstance(wanted := options.get(member), list):
            options[member] = [names[_role(name)] for name in wanted]
    heads = {head.partition(".")[0] for head in HEADS}
    options["modules_to_save"] = [name for name in sorted(heads) if hasattr(module, name)]
    options.pop("rank_pattern", None)
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[options["peft_type"]]
    known = {name: options[name] for name in options if name in kind.__dataclass_fields__}
    known |= {"inference_mode": False}
    model = peft.get_peft_model(module, kind(**known))
    _shake(p for p in model.parameters() if p.requires_grad)
    model.save_pretrained(directory, save_embedding_layers=False)


def _role(name: str) -> str:
    """The role of a BERT module, from its path or its last part as PEFT targets have it."""
    from edgebench.adapters.sites import ARCHITECTURES

    bert = ARCHITECTURES["bert"][1]
    # The longest first: output.dense is the end of attention.output.dense as well.
    for role, path in sorted(bert.items(), key=lambda item: -len(item[1])):
        if name == path or name.endswith(f".{path}"):
            return role
    return next(role for role, path in bert.items() if path.endswith(f".{name}"))


def _head(module: Any) -> dict[str, Any]:
    return {n: p for n, p in module.named_parameters() if n.startswith(HEADS)}


def _shake(parameters: Any) -> None:
    import torch

    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.02 * torch.randn(parameter.shape))
