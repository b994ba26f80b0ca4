"""What a step computes and holds, counted tensor by tensor: the same on every device, and of fake tensors.

`Counter` sees every operation below autograd and `torch.func`. FLOPs follow torch's own formulas; memory is
the bytes of the storages that live, so neither an allocator's rounding nor what a kernel takes for itself is
in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.measure.causes import CAUSES

NOTHING: Mapping[str, Iterable[Tensor]] = MappingProxyType({})


class _Held(weakref.ref[torch.UntypedStorage]):
    """A storage that lives, and what it counts for."""

    __slots__ = ("bytes", "cause", "key")
    key: int
    bytes: int
    cause: str


class _Kind(NamedTuple):
    """What is done about an operation.

    Attributes:
        decomposes: it is made of others, which are looked at in its place.
        formula: gives its FLOPs; None of those that count for none.
        creates: whether it gives storages that were not there before.
    """

    decomposes: bool
    formula: Callable[..., int] | None
    creates: bool


class Counter(TorchDispatchMode):
    """Counts, while it is on, the FLOPs of what runs and the bytes of the tensors that live, by cause.

    It is a context manager and may be entered again, which goes on with the count; what is made in between
    is not seen. A storage counts once, whatever tensors share it. New ones count as activations until they
    turn out to be gradients, parameters or an optimiser's state.

    Args:
        held: tensors that are there already, by cause; what is named twice counts for the first.
        trainable: tensors whose gradients are to be told from activations as soon as they are complete;
            otherwise that shows when an optimiser takes them.

    Attributes:
        flops: multiplications and additions counted apart, by `torch.utils.flop_counter`'s formulas: those
            of matrix products, convolutions and attention, which are all that matter.
        products: how many operations of so many FLOPs, on so many bytes of operands and results, ran; of
            those that count for any.
        operations: how many ran in all.
        created_bytes: size of all storages made.
        live_bytes: bytes of held and created storages that live now.
        peak_bytes: the most that lived at once.
        peak_by_cause: of these at that moment, by `CAUSES`.

    Raises:
        ValueError: `held` names a cause that is none of `CAUSES`.
    """

    supports_higher_order_operators = True

    def __init__(
        self, held: Mapping[str, Iterable[Tensor]] = NOTHING, trainable: Iterable[Tensor] = ()
    ) -> None:
        super().__init__()
        self.flops = self.operations = self.created_bytes = self.live_bytes = self.peak_bytes = 0
        self.products: dict[tuple[int, int], int] = {}
        self.peak_by_cause = dict.fromkeys(CAUSES, 0)
        self._by_cause = dict.fromkeys(CAUSES, 0)
        self._known: dict[int, _Held] = {}
        self._made_as = "activations"
        self._trainable = list(trainable)
        self._depth = 0
        self._hooks: list[Any] = []
        self._counted: dict[Any, tuple[int, int]] = {}
        if unknown := set(held) - set(CAUSES):
            raise ValueError(f"{min(unknown)!r} is none of the causes {', '.join(CAUSES)}")
        for cause, tensors in held.items():
            for tensor in tensors:
                if id(storage := tensor.untyped_storage()) not in self._known:
                    self._add(storage, cause)

    def __enter__(self) -> Counter:
        """Start counting."""
        self._depth += 1
        if self._depth == 1:  # deeper, it is what an operation is made of
            self._hooks = [
                register_optimizer_step_pre_hook(self._step_begins),
                register_optimizer_step_post_hook(self._step_ended),
                *(p.register_post_accumulate_grad_hook(self._has_gradient) for p in self._trainable),
            ]
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop counting."""
        super().__exit__(kind, error, trace)
        self._depth -= 1
        if self._depth == 0:
            for hook in self._hooks:
                hook.remove()
            self._made_as = "activations"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it does."""
        kind = _kind(func)
        if kind is None:
            return func(*args, **(kwargs or {}))
        if kind.decomposes:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **kwargs) if kwargs else func(*args)
        self.operations += 1
        if kind.formula is not None:
            product = self._product(func, kind.formula, args, kwargs or {}, out)
            self.flops += product[0]
            self.products[product] = self.products.get(product, 0) + 1
        if kind.creates:
            for tensor in (out,) if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else ():
                if isinstance(tensor, Tensor):
                    self._made(tensor)
        return out

    def _product(
        self, func: Any, formula: Callable[..., int], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> tuple[int, int]:
        """Give an operation's FLOPs and bytes, once for each shape: a formula takes longer than the rest."""
        key = (func, *map(_shape, args), *map(_shape, kwargs.values()))
        if key not in self._counted:
            tensors = [x for x in (*args, *kwargs.values(), out) if isinstance(x, Tensor)]
            flops = int(formula(*args, **kwargs, out_val=out))
            self._counted[key] = flops, sum(x.numel() * x.element_size() for x in tensors)
        return self._counted[key]

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._known:
            return
        held = self._add(storage, self._made_as)
        self.created_bytes += held.bytes

    def _count_as(self, tensor: Tensor, cause: str) -> None:
        """Have a tensor's storage count for `cause`, whether it is known or not."""
        storage = tensor.untyped_storage()
        held = self._known.get(id(storage))
        if held is None:
            self._add(storage, cause)
        elif held.cause != cause:
            self._by_cause[held.cause] -= held.bytes
            self._by_cause[cause] += held.bytes
            held.cause = cause
            self._note_peak()

    def _add(self, storage: torch.UntypedStorage, cause: str) -> _Held:
        held = _Held(storage, self._released)
        held.key, held.bytes, held.cause = id(storage), storage.nbytes(), cause
        self._known[held.key] = held
        self._by_cause[cause] += held.bytes
        self.live_bytes += held.bytes
        self._note_peak()
        return held

    def _note_peak(self) -> None:
        if self.live_bytes >= self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self.peak_by_cause = self._by_cause.copy()

    def _released(self, held: weakref.ref[torch.UntypedStorage]) -> None:
        assert isinstance(held, _Held)
        del self._known[held.key]
        self._by_cause[held.cause] -= held.bytes
        self.live_bytes -= held.bytes

    def _has_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._count_as(parameter.grad, "gradients")

    def _step_begins(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Tell apart what an optimiser works on; what it makes from here on is its own."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._count_as(parameter, "parameters")
                self._has_gradient(parameter)
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    self._count_as(value, "optimizer_state")
        self._made_as = "optimizer_state"

    def _step_ended(self, *_: Any) -> None:
        self._made_as = "activations"


@cache
def _kind(func: Any) -> _Kind | None:
    """Look an operation up; None for a question that only fake tensors ask, such as for their device."""
    if getattr(func, "namespace", "") == "prim":
        return None
    if not isinstance(func, OpOverload):  # of a higher order, such as a block of attention to be compiled
        return _Kind(False, flop_registry.get(func), True)
    formula = flop_registry.get(func._overloadpacket)
    # a view's result and one that was written to are marked as such; `lift_fresh` marks what is new
    creates = func is torch.ops.aten.lift_fresh.default or any(
        result.alias_info is None for result in func._schema.returns
    )
    return _Kind(formula is None and _is_composite(func), formula, creates)


def _is_composite(func: OpOverload) -> bool:
    """Say whether an operation is made of others for all devices: in inference mode these come whole."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _shape(value: Any) -> Any:
    """Give what a formula sees of an argument, as the key of a mapping."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else value
