"""Models of a few kilobytes with every part that a real one has, and adapters for them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

LABELS = ("no", "perhaps", "yes")
HIDDEN, LAYERS, HEADS, RANK = 32, 2, 4, 4


def write_tokenizer(directory: Path, names: list[str]) -> None:
    """A WordPiece tokenizer that knows single letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + ".,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=names,
        model_max_length=300,
    ).save_pretrained(directory)


def write_bert(directory: Path, *, hidden: int = HIDDEN, layers: int = LAYERS) -> Path:
    """A bare BERT encoder."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=80,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * hidden,
        max_position_embeddings=300,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(directory)
    write_tokenizer(directory, ["input_ids", "token_type_ids", "attention_mask"])
    return directory


def write_distilbert(directory: Path) -> Path:
    """An encoder that spells its sizes differently and takes no token types."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=80,
        dim=HIDDEN,
        n_layers=1,
        n_heads=HEADS,
        hidden_dim=64,
        max_position_embeddings=300,
        initializer_range=0.3,
    )
    DistilBertModel(config).save_pretrained(directory)
    write_tokenizer(directory, ["input_ids", "attention_mask"])
    return directory


def write_roberta(directory: Path) -> Path:
    """An encoder with positions from the mask and a head of two layers."""
    import torch
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=80,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=64,
        max_position_embeddings=302,
        pad_token_id=0,
        initializer_range=0.3,
    )
    RobertaModel(config).save_pretrained(directory)
    write_tokenizer(directory, ["input_ids", "attention_mask"])
    return directory


def write_adapter(base: Path, directory: Path, config: Any = None, task: str = "SEQ_CLS") -> Path:
    """A PEFT adapter with random factors, so that it changes the outputs a good deal."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    head = {
        "SEQ_CLS": AutoModelForSequenceClassification,
        "TOKEN_CLS": AutoModelForTokenClassification,
    }[task]
    torch.manual_seed(1)
    module = head.from_pretrained(base, num_labels=len(LABELS), local_files_only=True)
    config = config or peft.LoraConfig(
        task_type=task,
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["query", "value"],
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(module, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:  # AdaLoRA starts with a zero diagonal
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    (directory / "labels.json").write_text(json.dumps({"labels": LABELS}))
    return directory


def write_data(file: Path, rows: int = 12) -> Path:
    """Labelled text: some longer than any row, some a word."""
    words = ("the quick brown fox", "jumps over a lazy dog", "42 times, then", "rests.")
    with file.open("w") as stream:
        for row in range(rows):
            text = " ".join(words[(row + i) % len(words)] for i in range(1 + row * 5))
            stream.write(json.dumps({"text": text, "label": LABELS[row % 3]}) + "\n")
    return file
