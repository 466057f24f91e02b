"""The LoRA family's names, shapes and cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgebench.adapters import lora

P = lora.PREFIX
SHAPES = {
    f"{P}bert.encoder.layer.0.attention.self.query.lora_A.weight": (4, 32),
    f"{P}bert.encoder.layer.0.attention.self.query.lora_B.weight": (48, 4),
    f"{P}bert.encoder.layer.0.attention.self.query.lora_magnitude_vector": (48,),
    f"{P}bert.embeddings.word_embeddings.lora_embedding_A": (4, 99),
    f"{P}classifier.weight": (3, 32),
}
ADALORA = {f"{P}q.lora_A": (5, 32), f"{P}q.lora_B": (32, 5), f"{P}q.lora_E": (5, 1)}


def test_factors_are_paired_on_linear_modules_only():
    (factors,) = lora.linear_factors(SHAPES)
    assert factors == lora.Factors(
        "bert.encoder.layer.0.attention.self.query", rank=4, d_in=32, d_out=48
    )


def test_adalora_stores_its_factors_without_a_suffix():
    assert lora.linear_factors(ADALORA) == (lora.Factors("q", rank=5, d_in=32, d_out=32),)


def test_every_adapted_module_is_named_once():
    assert lora.adapted_modules(SHAPES) == (
        "bert.encoder.layer.0.attention.self.query",
        "bert.embeddings.word_embeddings",
    )


def test_what_was_trained_in_full_is_told_from_factors():
    assert lora.replaced_parameters(SHAPES) == {"classifier.weight": (3, 32)}


def test_factors_of_different_rank_are_no_pair():
    shapes = {f"{P}q.lora_A.weight": (4, 8), f"{P}q.lora_B.weight": (8, 5)}
    assert lora.linear_factors(shapes) == ()


@given(st.integers(1, 64), st.integers(1, 512), st.integers(1, 512), st.integers(1, 512))
def test_flops_grow_with_tokens_and_rank(rank, d_in, d_out, tokens):
    one = lora.Factors("m", rank, d_in, d_out)
    assert one.flops(2 * tokens) == 2 * one.flops(tokens)
    more = lora.Factors("m", rank + 1, d_in, d_out).flops(tokens) - one.flops(tokens)
    assert more == 2 * tokens * (d_in + d_out)
