"""A state comes back as it was, from bytes that any reader of safetensors understands."""

from collections import Counter

import pytest
import safetensors.torch
import torch

from etascope.errors import StudyError
from etascope.state import BYTES, DTYPES, PAIRS, TrialState, pack, serialize, unpack
from etascope.tensors import dense_parts, numbers_of


def state_of(**optimizer):
    return TrialState(3, 1, 2, {"w": torch.ones(2)}, {}, optimizer, None)


def there_and_back(value):
    return unpack(pack(state_of(value=value))).optimizer["value"]


@pytest.mark.parametrize("dtype", [*DTYPES, *PAIRS, *sorted(BYTES, key=str)], ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4, 5)], ids=str)
def test_tensors_of_every_kind_come_back_bit_for_bit(dtype, shape):
    count = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if dtype is torch.bool else 256
    data = torch.randint(0, high, (count,), dtype=torch.uint8).view(dtype).reshape(shape)
    back = there_and_back(data)
    assert back.dtype == dtype
    assert back.shape == data.shape
    assert back.stride() == data.stride()
    assert torch.equal(back.reshape(-1).view(torch.uint8), data.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0)[::3],
        torch.arange(4.0).expand(3, 4),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).imag,
        torch.ones(2, requires_grad=True),
    ],
    ids=["permuted", "strided", "expanded", "channels last", "conjugate", "imaginary", "leaf"],
)
def test_tensors_in_any_order_of_memory_come_back_equal(tensor):
    back = there_and_back(tensor)
    assert torch.equal(back, tensor)
    assert not back.requires_grad


def test_dense_tensors_keep_their_order_of_memory():
    last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert there_and_back(last).stride() == last.stride()


def test_views_of_one_memory_come_back_each_with_its_own_numbers():
    whole = torch.arange(6.0)
    back = there_and_back([whole, whole[:3], whole])
    assert [t.tolist() for t in back] == [whole.tolist(), whole[:3].tolist(), whole.tolist()]


def test_plain_values_keep_their_types():
    value = [1, True, None, "a", 0.1, float("inf"), (1, (2,)), {1, 2}, {(0, "b"): Counter("aab")}]
    back = there_and_back(value)
    assert back == value
    assert [type(v) for v in back] == [type(v) for v in value]


def test_the_parts_are_the_memory_of_the_tensors_and_one_file_of_safetensors():
    weight = torch.randn(4, 5)
    state = state_of(half=torch.ones(3, dtype=torch.float16), weight=weight)
    header, *parts = serialize(state)
    assert any(torch.frombuffer(p, dtype=torch.float32)[0] == weight[0, 0] for p in parts)
    weight.zero_()
    read = safetensors.torch.load(b"".join([header, *parts]))
    assert sorted(t.numel() for t in read.values()) == [2, 3, 20]
    assert all(t.data_ptr() % t.itemsize == 0 for t in read.values())
    assert next(t for t in read.values() if t.numel() == 20).count_nonzero() == 0


def doubled():
    """Sparse, with an index that comes twice, as the gradient of an embedding has."""
    indices = torch.tensor([[1, 1, 0]])
    return torch.sparse_coo_tensor(indices, torch.randn(3, 2), (4, 2), check_invariants=True)


SPARSE = {
    "double": doubled,
    "coalesced": lambda: doubled().coalesce(),
    "empty": lambda: torch.zeros(2, 3).to_sparse(),
    "complex": lambda: torch.eye(3, dtype=torch.complex128).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "csc": lambda: torch.eye(3).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "bsc": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_sparse_tensors_come_back_part_by_part(make):
    tensor = make()
    back = there_and_back(tensor)
    assert (back.layout, back.shape, back.dtype) == (tensor.layout, tensor.shape, tensor.dtype)
    ours, theirs = dense_parts(back), dense_parts(tensor)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    if tensor.layout is torch.sparse_coo:
        assert back.is_coalesced() == tensor.is_coalesced()


EVERY_DTYPE = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
def test_tensors_of_any_kind_that_torch_has_are_kept_or_named(dtype):
    tensor = torch.empty(3, dtype=dtype)
    try:
        back = there_and_back(tensor)
    except StudyError as error:
        assert str(dtype).removeprefix("torch.") in str(error)  # noqa: PT017 - either will do
        assert dtype not in DTYPES
    else:
        assert back.dtype == dtype
        assert numbers_of(back) == numbers_of(tensor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda: torch.zeros(2, dtype=torch.bits8), "bits8 tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "quint8 tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "nested float32 tensor"),
        (lambda: torch.zeros(2, device="meta"), "meta float32 tensor"),
        (object, "object"),
    ],
    ids=["bits", "quantized", "nested", "meta", "object"],
)
def test_what_cannot_be_saved_is_named(value, what):
    with pytest.raises(StudyError, match=f"keeps a {what} in its state"):
        pack(state_of(value=value()))


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\xff" * 40])
def test_damaged_bytes_are_no_state(damage):
    with pytest.raises(ValueError, match="no state of a trial"):
        unpack(damage)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_indices_past_the_end_are_no_state():
    packed = pack(state_of(value=torch.eye(3).to_sparse()))
    with pytest.raises(ValueError, match="no state of a trial"):
        unpack(packed.replace(b"[3, 3]", b"[2, 2]"))


def test_a_state_cut_short_is_no_state():
    packed = pack(state_of())
    for length in range(0, len(packed), 7):
        with pytest.raises(ValueError, match="no state of a trial"):
            unpack(packed[:length])
