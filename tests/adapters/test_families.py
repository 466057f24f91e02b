"""The mathematics of each family: rank, norm, sparsity, folding, storage."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from edgebench.adapters import base as torch_side  # noqa: E402
from edgebench.adapters import dictionary_op, storage  # noqa: E402
from edgebench.adapters.himalaya import MOST_ELASTIC, Himalaya, grow  # noqa: E402
from edgebench.adapters.unihyperlora import cosines  # noqa: E402
from tests.adapters import families  # noqa: E402
from tests.adapters.families import LINEAR, MEMBERS  # noqa: E402
from tests.export import tiny  # noqa: E402

SEEDS = st.integers(0, 2**16)
FEW = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write_bert(tmp_path_factory.mktemp("families") / "bert")


@pytest.fixture(scope="module")
def module(base):
    return families.model(base)


def tokens(d: int, seed: int = 0):
    return torch.randn(2, 5, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", MEMBERS)
def test_the_tensors_are_those_that_the_exporter_asks_for(family, module):
    made = families.adapter(family, module)
    wanted = families.exporter(family).shapes(made.members, made.sites)
    assert {name: tuple(t.shape) for name, t in made.stored().items()} == wanted


@pytest.mark.parametrize("family", MEMBERS)
@FEW
@given(seed=SEEDS)
def test_what_is_read_back_is_stored_the_same_again(family, module, seed):
    made = families.restored(family, families.adapter(family, module, seed=seed), module)
    first = made.stored()
    second = families.restored(family, made, module).stored()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", LINEAR)
@FEW
@given(seed=SEEDS)
def test_a_linear_update_is_its_matrix_and_no_wider_than_its_rank(family, module, seed):
    made = families.adapter(family, module, seed=seed)
    rank = made.members.get("rank", made.members.get("active_atoms"))
    for site in made.sites[:6]:
        x = tokens(site.d_in, seed)
        delta = made.delta(site)
        assert delta.shape == (site.d_out, site.d_in)
        torch.testing.assert_close(made.update(site, x), x @ delta.T, atol=1e-5, rtol=1e-4)
        values = torch.linalg.svdvals(delta.double())
        assert int((values > 1e-6 * values[0]).sum()) <= rank


@pytest.mark.parametrize("family", [*LINEAR, "representation_edit", "unihyperlora"])
def test_a_settled_branch_computes_the_update(family, module):
    made = families.restored(family, families.adapter(family, module), module)
    for site in made.sites:
        x = tokens(site.d_in)
        torch.testing.assert_close(made.branch(site)(x), made.update(site, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", LINEAR)
def test_folded_and_unfolded_give_the_same_outputs(family, base):
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    outputs = []
    for fold in (False, True):
        module = families.model(base)
        torch_side.inject(module, families.adapter(family, module))
        if fold:
            torch_side.merge(module)
        with torch.no_grad():
            outputs.append(module(input_ids=ids).logits)
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        plain = families.model(base)(input_ids=ids).logits
    assert not torch.allclose(outputs[0], plain, atol=1e-2)


def test_layers_that_share_their_factors_store_them_once(module):
    made = families.adapter("sat_lora", module, share_layers=True)
    assert made.stored()["q.a"].shape[0] == 1
    first, second = (site for site in made.sites if site.role == "q")
    assert torch.equal(made.delta(first), made.delta(second))


@FEW
@given(seed=SEEDS, active=st.integers(1, 16))
def test_a_dictionary_uses_no_more_atoms_than_are_active(module, seed, active):
    made = families.adapter("dictionary", module, seed=seed, active_atoms=active)
    assert all(int(made.active(site).count_nonzero()) <= active for site in made.sites)


def test_a_representation_edit_is_its_formula(module):
    made = families.adapter("representation_edit", module)
    site = made.sites[1]
    h = tokens(site.d_in)
    r, w, b = (made.r[1], made.w[1], made.b[1])
    wanted = h + (h @ w.T + b - h @ r.T) @ r
    torch.testing.assert_close(h + made.update(site, h), wanted, atol=1e-5, rtol=1e-5)


def test_a_new_edit_changes_nothing_and_has_orthonormal_rows(module):
    made = families.exporter("representation_edit").module(
        MEMBERS["representation_edit"], torch_side.sites_of(module, ["hidden"])
    )
    torch.testing.assert_close(made.r[0] @ made.r[0].T, torch.eye(3), atol=1e-5, rtol=0)
    assert not made.eval().update(made.sites[0], tokens(tiny.HIDDEN)).any()


# ---------------------------------------------------------------- HIMALAYA


def himalaya(module, seed: int = 0, **changes) -> Himalaya:
    made = families.adapter("himalaya", module, seed=seed, **changes)
    return families.restored("himalaya", made, module)


@FEW
@given(seed=SEEDS, active=st.integers(1, 3))
def test_a_direction_has_length_one_and_few_atoms(module, seed, active):
    made = himalaya(module, seed, active_atoms=active)
    x = tokens(tiny.HIDDEN, seed)
    lengths = made.direction(x).norm(dim=-1)
    assert float((lengths - 1).abs().max()) < 1e-5
    indices, coefficients = made.route(x)
    assert indices.shape[-1] == active
    assert bool((coefficients[..., 0] != 0).all())
    assert torch.equal(coefficients, coefficients.round())
    assert float(coefficients.abs().max()) <= 127


@FEW
@given(seed=SEEDS)
def test_the_update_is_the_outer_product_over_the_root_of_d(module, seed):
    made = himalaya(module, seed)
    x = tokens(tiny.HIDDEN, seed)
    r = made.direction(x)
    wanted = torch.einsum("bti,btj,btj->bti", r, r, x) / math.sqrt(tiny.HIDDEN)
    torch.testing.assert_close(made.update(made.sites[0], x), wanted, atol=1e-6, rtol=1e-4)


@FEW
@given(seed=SEEDS, atoms=st.integers(1, 40), d=st.integers(3, 300))
def test_three_bits_are_three_bits(seed, atoms, d):
    values = torch.randn(atoms, d, generator=torch.Generator().manual_seed(seed))
    stored = storage.to_dictionary(values)
    planes = stored["low"].numel() + stored["high"].numel()
    assert 8 * planes == 3 * atoms * 8 * -(-d // 8)
    assert {n: tuple(t.shape) for n, t in stored.items()} == storage.dictionary_shapes(atoms, d)
    back = storage.from_dictionary(stored)
    powers = torch.exp2(stored["smooth"].float() / storage.SMOOTH_STEPS)
    scales = stored["scales"].float().repeat_interleave(storage.BLOCK, 1)[:, :d]
    codes = torch.where(scales == 0, 0.0, back / powers / scales)
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    assert float(codes.min()) > -4.5 and float(codes.max()) < 3.5


def test_40_atoms_of_384_take_at_most_three_and_a_half_bits_with_all_scales():
    stored = storage.to_dictionary(torch.randn(40, 384))
    bits = sum(8 * t.numel() * t.element_size() for t in stored.values())
    assert bits / (40 * 384) <= 3.5


def test_smooth_scales_save_error_where_channels_differ():
    spread = torch.exp(torch.randn(256, generator=torch.Generator().manual_seed(1)))
    atoms = torch.randn(24, 256, generator=torch.Generator().manual_seed(2)) * spread
    stored = storage.to_dictionary(atoms)
    smooth = (storage.from_dictionary(stored) - atoms).square().sum()
    plain = (
        storage.from_dictionary(storage.to_dictionary(atoms / spread)) * spread - atoms
    ).square()
    # alpha = 1/2 takes half of the spread; all of it is the ideal that needs to know it.
    unsmoothed = _without_smoothing(atoms)
    assert float(smooth) < 0.9 * unsmoothed
    assert float(plain.sum()) < unsmoothed


def _without_smoothing(atoms) -> float:
    scale = atoms.abs().reshape(len(atoms), -1, storage.BLOCK).amax(-1) / 3.5
    wide = scale.repeat_interleave(storage.BLOCK, 1)
    return float(((atoms / wide).round().clamp(-4, 3) * wide - atoms).square().sum())


def run_op(made: Himalaya, x: np.ndarray, indices: np.ndarray, coefficients: np.ndarray):
    """The op's body in ONNX Runtime."""
    planes = {name: getattr(made, name).numpy() for name in ("low", "high", "scales", "smooth")}
    arrays = {"X": x, "indices": indices, "coefficients": coefficients, **planes}
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in arrays.items()
    ]
    node = helper.make_node(
        dictionary_op.NAME, list(arrays), ["Y"], domain="edgebench", K=made.d, block_size=128
    )
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, x.shape)
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    dictionary_op.complete(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, arrays)[0]


@FEW
@given(seed=SEEDS)
def test_the_op_computes_a_direction_of_length_one(module, seed):
    made = himalaya(module, seed)
    d = made.d
    x = tokens(d, seed)
    indices, coefficients = made.route(x)
    feeds = indices.numpy().astype(np.int8), coefficients.detach().numpy().astype(np.int8)
    y = run_op(made, x.numpy(), *feeds)
    wanted = made.update(made.sites[0], x).detach().numpy()
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    # Given the unit vectors, the op's matrix is r r'/sqrt(d), whose trace is ||r||^2/sqrt(d).
    one = tuple(np.broadcast_to(f[0, 0], (d, f.shape[-1])).copy() for f in feeds)
    matrix = run_op(made, np.eye(d, dtype=np.float32), *one)
    assert abs(math.sqrt(np.trace(matrix) * math.sqrt(d)) - 1) < 1e-5


def test_no_active_atom_is_no_update(module):
    made = himalaya(module)
    x = np.ones((1, 2, made.d), np.float32)
    nothing = np.zeros((1, 2, 3), np.int8)
    assert not run_op(made, x, nothing, nothing).any()


def test_growth_adds_atoms_where_none_is_near_and_leaves_the_others(module):
    made = himalaya(module, elastic_atoms=0)
    states = torch.cat([made.atoms.detach(), torch.eye(made.d)[:4]])
    grown = grow(made, states)
    added = len(grown.atoms) - len(made.atoms)
    assert 1 <= added <= 4
    assert grown.members["elastic_atoms"] == added
    torch.testing.assert_close(grown.atoms[: len(made.atoms)], made.atoms)
    full = grow(made, torch.randn(500, made.d, generator=torch.Generator().manual_seed(0)))
    assert full.members["elastic_atoms"] == MOST_ELASTIC
    assert grow(made, made.atoms.detach()) is made


# ---------------------------------------------------------------- UniHyperLoRA


@FEW
@given(d=st.integers(1, 200), frequencies=st.integers(1, 200))
def test_the_cosine_basis_is_orthonormal(d, frequencies):
    basis = cosines(d, frequencies)
    assert basis.shape == (min(d, frequencies), d)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)


@FEW
@given(seed=SEEDS, active=st.integers(1, 2), routing=st.sampled_from(["token", "sequence"]))
def test_no_more_atoms_than_top_k_are_used(module, seed, active, routing):
    made = families.adapter("unihyperlora", module, seed=seed, active_atoms=active, routing=routing)
    site = made.sites[0]
    x = tokens(site.d_in, seed)
    update = made.update(site, x)
    # The update of each token lies in the span of at most k rows of U: its rank over tokens that
    # are routed alike is at most k. One token: the update of a multiple is that multiple.
    down, _, router, up = made.parts(site)
    decides = (x if routing == "token" else x[:, :1]) @ down.T
    chosen = (decides @ router.T).topk(active, dim=-1).indices.expand(2, 5, active)
    for b, t in ((0, 0), (1, 3)):
        rows = up[chosen[b, t]]
        solution = torch.linalg.lstsq(rows.T, update[b, t][:, None]).solution
        torch.testing.assert_close((rows.T @ solution)[:, 0], update[b, t], atol=1e-4, rtol=1e-3)


def test_one_file_fits_two_widths_and_depths(tmp_path, base):
    wide = tiny.write_bert(tmp_path / "wide", hidden=48, layers=3)
    small = families.model(base)
    made = families.restored("unihyperlora", families.adapter("unihyperlora", small), small)
    stored = made.stored()
    large = families.model(wide)
    sites = torch_side.sites_of(large, made.members["targets"])
    again = families.exporter("unihyperlora").module(made.members, sites)
    again.restore(stored)
    again.eval()
    assert {n: t.shape for n, t in again.stored().items()} == {
        n: t.shape for n, t in stored.items()
    }
    assert again.head(large)["classifier.weight"].shape == (3, 48)
    update = again.update(sites[-1], tokens(sites[-1].d_in))
    assert update.shape[-1] == 48
    assert float(update.detach().abs().max()) > 0


def test_the_published_sizes_keep_the_file_under_a_megabyte(module):
    changes = {"atoms": 128, "width": 256, "projector_rank": 8, "frequencies": 128}
    stored = families.adapter("unihyperlora", module, **changes).stored()
    size = {name: t.numel() * t.element_size() for name, t in stored.items()}
    assert sum(size.values()) <= 1_000_000
    mixer = sum(n for name, n in size.items() if name.startswith("mixer"))
    projectors = sum(n for name, n in size.items() if name.split(".")[0] in {"a", "b"})
    assert 800 < mixer < 1600  # about 2 k parameters of 4 bits
    assert 2500 < projectors < 4500  # about 4 kB
    assert 350 < size["delta"] + size["delta.scale"] < 550  # about 0.5 kB
