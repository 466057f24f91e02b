"""A checkpoint of a few kilobytes, as transformers itself saves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures_export import require


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier of one layer and three labels, in fp32."""
    require("torch", "transformers", "peft")
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("checkpoint")
    config = BertConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        num_labels=3,
    )
    BertForSequenceClassification(config).eval().save_pretrained(directory)
    return directory
