"""The plain tensors that hold the numbers of any tensor, whatever its layout."""

from __future__ import annotations

import torch

COMPRESSED = {
    torch.sparse_csr: (torch.Tensor.crow_indices, torch.Tensor.col_indices),
    torch.sparse_bsr: (torch.Tensor.crow_indices, torch.Tensor.col_indices),
    torch.sparse_csc: (torch.Tensor.ccol_indices, torch.Tensor.row_indices),
    torch.sparse_bsc: (torch.Tensor.ccol_indices, torch.Tensor.row_indices),
}


def dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The strided tensors that a tensor consists of: itself, or its indices and its values.

    >>> [part.tolist() for part in dense_parts(torch.tensor([0.0, 2.0]).to_sparse())]
    [[[1]], [2.0]]
    """
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        # The public accessors refuse a tensor whose indices may come twice, as gradients' may.
        return [tensor._indices(), tensor._values()]
    if tensor.layout in COMPRESSED:
        return [*(part(tensor) for part in COMPRESSED[tensor.layout]), tensor.values()]
    return [tensor]


def bytes_of(tensor: torch.Tensor) -> int:
    """The memory that a tensor of any layout takes.

    >>> bytes_of(torch.zeros(3)), bytes_of(torch.tensor([0.0, 2.0]).to_sparse())
    (12, 12)
    """
    return sum(part.nbytes for part in dense_parts(tensor))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor of any layout and kind holds no infinity and no NaN.

    >>> is_finite(torch.eye(2).to_sparse()), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    return all(
        bool(torch.isfinite(part if part.itemsize > 1 else part.float()).all())
        for part in dense_parts(tensor)
        if part.is_floating_point() or part.is_complex()
    )


def numbers_of(tensor: torch.Tensor) -> bytes:
    """All numbers of a tensor as they stand in memory, in the order of its axes."""
    return b"".join(
        part.cpu()
        .resolve_conj()
        .resolve_neg()
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
        for part in dense_parts(tensor)
    )
