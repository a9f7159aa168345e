"""Deep copies of modules that a copy can stand for: everything of the module's own, nothing else's.

`copy.deepcopy` alone refuses tensors that autograd computed (the weight of a weight norm), leaves
out the hooks of parameters and unties parameters that share their memory. What refers to the
original by other ways than an attribute (a function's closure, a weak reference) would compute
with the original's weights, so it is refused by name.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import _lru_cache_wrapper, partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from etascope.errors import RAISED, UsageError
from etascope.problems.contents import attributes_of

T = TypeVar("T")

_TREE = ("_parameters", "_buffers", "_modules")  # what a module registers


def copied(given: T, roots: Mapping[str, nn.Module]) -> T:
    """A deep copy of `given` that shares nothing with it.

    Args:
        given: a module, or a dict of modules and of what trains them.
        roots: the modules in it, by name.

    Raises:
        UsageError: saying what of it cannot be copied and why; nothing is changed.
    """
    others = given if isinstance(given, dict) else {}
    own = {id(part) for root in roots.values() for part in parts_of(root)}
    own |= {id(part) for part in others.values()}
    memo: dict[int, Any] = {}
    for place, value in _reachable(roots, others):
        if isinstance(value, torch.Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif _points_past_a_copy(value, own):
            raise UsageError(
                f"its attribute {place!r} is a {type(value).__name__} that refers to the model "
                "itself, so that a copy would compute with the weights of the original"
            )
    try:
        with torch.no_grad():  # or the copy of a scripted module hands its gradients back
            for part in others.values():
                if isinstance(part, Optimizer):
                    _copy_optimizer(part, memo)
            made = copy.deepcopy(given, memo)
    except RAISED as error:
        raise UsageError(_reason(roots, error)) from error
    for root in roots.values():
        _finish(memo.get(id(root), root), root)
    _carry_hooks(roots, memo)
    _tie(roots, memo)
    return made


def _copy_optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> None:
    """Put a whole copy in `memo`: torch's own leaves out what is neither a group nor a state."""
    made = memo[id(optimizer)] = object.__new__(type(optimizer))
    vars(made).update(copy.deepcopy(vars(optimizer), memo))


def _finish(made: nn.Module, given: nn.Module) -> None:
    """Let the copy's parameters want gradients as the original's do; refuse one that is shared."""
    for ours, (name, theirs) in zip(made.parameters(), given.named_parameters(), strict=True):
        if ours is theirs and (made is given or theirs.requires_grad):
            raise UsageError(f"its deep copy holds the parameter {name!r} of the original")
        if ours.requires_grad != theirs.requires_grad:
            ours.requires_grad_(theirs.requires_grad)


def parts_of(root: nn.Module) -> Iterator[nn.Module | torch.Tensor]:
    """Every module, parameter and buffer of a module once."""
    yield from root.modules()
    yield from root.parameters()
    yield from root.buffers()


def memory_of(tensor: torch.Tensor) -> int:
    """What tells the memory of a tensor from that of every other one; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # sparse tensors have several, and lazy ones none
        return 0


def tied_by_memory(root: nn.Module) -> list[list[torch.Tensor]]:
    """The parameters and buffers that share their memory, in groups of two or more."""
    groups: dict[int, list[torch.Tensor]] = {}
    for part in (*root.parameters(), *root.buffers()):
        if memory := memory_of(part):
            groups.setdefault(memory, []).append(part)
    return [group for group in groups.values() if len(group) > 1]


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside its parameters, buffers and modules."""
    return {name: value for name, value in vars(module).items() if name not in _TREE}


def _reachable(
    roots: Mapping[str, nn.Module], others: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """All that a copy reaches through attributes and containers, with the attribute's name."""
    seen = {id(module) for root in roots.values() for module in root.modules()}
    for name, part in others.items():
        yield from _inside(str(name), part, seen)
    for prefix, root in roots.items():
        for name, module in root.named_modules(prefix=prefix):
            for key, value in _state_of(module, plain_attributes(module)).items():
                yield from _inside(f"{name}.{key}".lstrip("."), value, seen)
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                place = f"{name}.{key}".lstrip(".")
                yield place, tensor
                for hook in _tensor_hooks(tensor):
                    yield from _inside(f"the hook of {place}", hook, seen)


def _inside(place: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(value) in seen:
        return
    seen.add(id(value))
    yield place, value
    for child in _followed(value):
        yield from _inside(place, child, seen)


def _followed(value: Any) -> list[Any]:
    """What a deep copy copies along with `value`."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, nn.Module):  # one that is kept in a list, say, and not registered
        return list(_state_of(value, vars(value)).values())
    return list(_state_of(value, attributes_of(value)).values())


def _state_of(value: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes that a copy takes over: a class may say which, and make the others anew."""
    state_of = getattr(type(value), "__getstate__", None)
    plain = state_of is getattr(object, "__getstate__", None)
    if state_of is None or plain or isinstance(value, Optimizer):
        return attributes
    try:
        state = state_of(value)
    except RAISED:  # what copying it raises then is told with its name
        return attributes
    kept = state if isinstance(state, Mapping) else {}
    return {name: item for name, item in attributes.items() if name in kept}


def _points_past_a_copy(value: Any, own: set[int]) -> bool:
    """Whether `value` refers to a part of the model and is not copied by a deep copy."""
    if isinstance(value, weakref.ReferenceType):
        return id(value()) in own
    return _closes_over(value, own, set())


def _closes_over(value: Any, own: set[int], seen: set[int]) -> bool:
    if isinstance(value, _lru_cache_wrapper):
        return _refers(value.__wrapped__, own, seen)
    if not isinstance(value, FunctionType):
        return False
    held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    for cell in value.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # it is not filled yet
            continue
    return any(_refers(item, own, seen) for item in held)


def _refers(value: Any, own: set[int], seen: set[int]) -> bool:
    """Whether what a function holds leads to a part of the model."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, weakref.ReferenceType):
        return id(value()) in own
    if id(value) in own or _closes_over(value, own, seen):
        return True
    if isinstance(value, (Mapping, list, tuple, set, MethodType, partial)):
        return any(_refers(child, own, seen) for child in _followed(value))
    return False


def _reason(roots: Mapping[str, nn.Module], error: BaseException) -> str:
    """Which attribute cannot be copied, and what copying it raises."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for prefix, root in roots.items():
        memo = {id(part): part for part in parts_of(root)}
        for name, module in root.named_modules(prefix=prefix):
            for key, value in plain_attributes(module).items():
                try:
                    copy.deepcopy(value, dict(memo))
                except RAISED:
                    place = f"{name}.{key}".lstrip(".")
                    return f"its attribute {place!r}, a {type(value).__name__}, cannot ({what})"
    return f"copying it raised {what}"


def _tensor_hooks(tensor: torch.Tensor | None) -> list[Callable[..., Any]]:
    if tensor is None:
        return []
    after = getattr(tensor, "_post_accumulate_grad_hooks", None)
    return [*(tensor._backward_hooks or {}).values(), *(after or {}).values()]


def _carry_hooks(roots: Mapping[str, nn.Module], memo: dict[int, Any]) -> None:
    """Give the copies of tensors the hooks that gradients pass through, which no copy keeps."""
    for tensor in _tensors(roots):
        if tensor._backward_hooks and tensor.is_leaf:
            for hook in tensor._backward_hooks.values():
                memo[id(tensor)].register_hook(copy.deepcopy(hook, memo))
        for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values():
            memo[id(tensor)].register_post_accumulate_grad_hook(copy.deepcopy(hook, memo))


def _tie(roots: Mapping[str, nn.Module], memo: dict[int, Any]) -> None:
    """Let the copies of tensors share their memory where the tensors do."""
    for root in roots.values():
        for group in tied_by_memory(root):
            whole = torch.empty(0, dtype=group[0].dtype, device=group[0].device)
            whole.set_(group[0].untyped_storage())
            memory = whole.clone()
            for tensor in group:
                made, place = memo[id(tensor)], (tensor.stride(), tensor.storage_offset())
                if tensor.dtype == memory.dtype:
                    made.data = memory.as_strided(tensor.shape, *place)


def _tensors(roots: Mapping[str, nn.Module]) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    for root in roots.values():
        for part in parts_of(root):
            if isinstance(part, torch.Tensor) and id(part) not in seen:
                seen.add(id(part))
                yield part
