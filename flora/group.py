"""Many clients at once: what `flora.client` does for one, in one call for all of them.

The clients' trainable tensors are stacked, a row each; the frozen weights are shared. A step is the gradient
of the method's loss mapped over the rows (`torch.func`), and one call of the optimiser. On a GPU, where
starting the many small kernels of a client's step takes longer than they run, and for many small clients
anywhere, that saves most of the time. The numbers are those of one client after another, but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from flora.client import OptimizerState, optimizer_over
from flora.features import Batch, Samples, Texts
from flora.method import Method
from flora.prompts import Branches
from flora.settings import Training

# Memory that a group's steps may take on a CPU; more clients at once are not faster there, as what they
# compute leaves the caches.
CPU_BUDGET_BYTES = 256 * 2**20
# Share of a GPU's memory that they may take.
GPU_SHARE = 0.25
# Copies of a client's trainable tensors that a group needs: the values, gradients by tensor and in a row, two
# moments, what the optimiser makes meanwhile; then the payload, what is decoded of it, the aggregate's share.
STATE_COPIES = 9
# What a mapped step takes at its height, over what one client's step keeps for its backward pass: measured
# 3.8 with FLoRA and 6 with prompt tuning on the embedded model.
ACTIVATION_COPIES = 6
# Fewer clients than this at once are not worth it.
FEWEST = 4


@dataclass
class GroupState:
    """Clients amid a round, those with the most steps first.

    Attributes:
        method: whose loss is followed; its own parameters stay as they are.
        training: what the clients were asked to do.
        rows: (clients, trainable numbers) their parameters; `parameters` are views of its rows.
        parameters: one for each client, as the optimiser sees it.
        optimizer: over these.
        anchor: (trainable numbers,) the parameters as they arrived.
        losses: (clients,) sums over the samples seen of their batch's mean loss.
        gradients: (clients, trainable numbers) of the last step, of those who took it.
    """

    method: Method
    training: Training
    rows: Tensor
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    anchor: Tensor
    losses: Tensor
    gradients: Tensor


def start(
    method: Method,
    tensors: Mapping[str, Tensor],
    training: Training,
    kept: Sequence[OptimizerState | None],
) -> GroupState:
    """Give each client what the server sent, and its optimiser's state where one was kept (else None)."""
    like = method.clip.logit_scale
    anchor = torch.cat([tensors[name].flatten() for name in method.trainable]).to(like.device)
    rows = anchor.repeat(len(kept), 1)
    parameters = [nn.Parameter(row) for row in rows]
    optimizer = optimizer_over(parameters, training)
    for parameter, state in zip(parameters, kept, strict=True):
        if state:
            optimizer.state[parameter] = {name: x.to(like.device) for name, x in state.items()}
    return GroupState(
        method, training, rows, parameters, optimizer, anchor, like.new_zeros(len(kept)), rows.new_empty(0)
    )


def step(state: GroupState, batch: Batch, sizes: Sequence[int]) -> GroupState:
    """Take one step for the first clients on their stacked batches; the others have no more.

    Args:
        state: of all of them.
        batch: as `stack` gives it.
        sizes: how many samples of it are each client's own.
    """
    active = len(sizes)
    gradients, losses = differentiate(state, batch)
    if state.training.proximal_mu:
        gradients.add_(state.rows[:active] - state.anchor, alpha=state.training.proximal_mu)
    for parameter, gradient in zip(state.parameters, gradients, strict=False):
        parameter.grad = gradient
    state.gradients = gradients
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.losses[:active] += losses.detach() * torch.tensor(sizes, device=losses.device)
    return state


def differentiate(state: GroupState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Give the first clients' gradients (clients, trainable numbers) and losses (clients,) on a stack."""
    active = len(batch.labels)
    state.gradients = state.rows.new_empty(0)  # let go of before new ones are made
    # only attention written out can be mapped over clients on every device
    with sdpa_kernel(SDPBackend.MATH):
        gradients, losses = _mapped(state.method, batch)(state.rows[:active], _tensors(batch))
    return gradients, losses


def gradients(state: GroupState) -> dict[str, Tensor]:
    """Give the gradients that the last step followed, by trainable tensor: (clients, ...)."""
    named = [_named(state.method, row) for row in state.gradients]
    return {name: torch.stack([row[name] for row in named]) for name in state.method.trainable}


def finish(state: GroupState) -> tuple[list[dict[str, Tensor]], list[float], list[OptimizerState | None]]:
    """Give each client's trained tensors, on the CPU; its summed loss; and its optimiser's state.

    The state of a client that diverged is None, or it could never recover.
    """
    rows = state.rows.cpu()
    sound = rows.isfinite().all(dim=1).tolist()
    trained = [_named(state.method, row) for row in rows]
    states = [
        dict(state.optimizer.state[p]) if ok else None for p, ok in zip(state.parameters, sound, strict=True)
    ]
    return trained, state.losses.tolist(), states


def stack(method: Method, samples: Samples, chosen: Sequence[Tensor]) -> Batch:
    """Gather a batch for each of several clients, as one whose tensors have a dimension in front.

    Shorter ones are filled up to the longest, and `real` then says which samples count.
    """
    method.keep_frozen()
    sizes = [len(indices) for indices in chosen]
    longest = max(sizes)
    # with a sample of the client's own: another's may be one that no gradient is to come near
    indices = torch.stack([torch.cat([x, x[:1].expand(longest - len(x))]) for x in chosen])
    together = samples.batch(indices.flatten())
    inputs, labels = (x.unflatten(0, indices.shape) for x in (together.inputs, together.labels))
    real = texts = None
    if len(set(sizes)) > 1:
        real = (torch.arange(longest) < torch.tensor(sizes)[:, None]).to(labels.device)
    if method.needs_texts:
        # each client's in one sequence, so that they are alike; stacked before they go to the device
        of_clients = [method.choose_texts(samples.classes[x], at_once=longest) for x in chosen]
        texts = _stacked_texts(of_clients).to(labels.device)
    return Batch(inputs, labels, together.stage, None, texts, real)


def clients_at_once(
    method: Method, samples: Samples, shares: Sequence[Tensor], training: Training, most: int
) -> int:
    """Say how many clients fit into the device's budget of memory together, by what one client's step takes.

    Args:
        method: the method.
        samples: all training samples.
        shares: the clients' samples (n,).
        training: what a client does.
        most: clients in a round.

    Returns:
        1 where clients cannot be grouped, or fewer than `FEWEST` fit.
    """
    budget = _budget(method.clip.logit_scale.device)
    trainable = sum(p.numel() * p.element_size() for p in method.trainable.values())
    if most < FEWEST or not _may_be_grouped(method) or STATE_COPIES * trainable * FEWEST > budget:
        return 1
    heaviest = _heaviest_batch(samples, shares, training.batch_size)
    each = STATE_COPIES * trainable + ACTIVATION_COPIES * _kept_for_backward(method, samples.batch(heaviest))
    fit = min(most, budget // each)
    # tried last: only where a step is small is trying it cheap
    return int(fit) if fit >= FEWEST and can_be_grouped(method, samples, heaviest) else 1


def can_be_grouped(method: Method, samples: Samples, indices: Tensor) -> bool:
    """Say whether clients can be stacked, by trying it with two that have the samples at `indices` (n,).

    Not where nothing trains; not unaccelerated, as a client by itself would run; not in half precision, where
    float16 finds a loss scale in each step and mapped attention and layer norms have no gradient in bfloat16
    on a CPU; and not where a layer's code cannot be mapped (some of PEFT's and transformers').
    """
    if not _may_be_grouped(method):
        return False
    rows = torch.cat([p.detach().flatten() for p in method.trainable.values()]).repeat(2, 1)
    batch = stack(method, samples, [indices, indices[:1]])
    try:
        with sdpa_kernel(SDPBackend.MATH):
            _mapped(method, batch)(rows, _tensors(batch))
    except RuntimeError:  # of torch.func; what is wrong with the method itself comes up one by one, too
        return False
    return True


def _may_be_grouped(method: Method) -> bool:
    return bool(method.trainable) and method.exact and method.clip.compute_dtype is None


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_BUDGET_BYTES
    # of all of its memory, not of what is free now: the same number each time
    return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)


def _heaviest_batch(samples: Samples, shares: Sequence[Tensor], batch_size: int) -> Tensor:
    """Give a batch as large as the clients' largest, of as many classes as one of theirs can have."""
    size = min(batch_size, max(map(len, shares)))
    varied = max(shares, key=lambda share: len(samples.classes[share].unique()))
    firsts = np.unique(samples.classes[varied].numpy(), return_index=True)[1]
    of_each_class = varied[torch.from_numpy(firsts)]
    return torch.cat([of_each_class, *[varied] * size])[:size]


def _kept_for_backward(method: Method, batch: Batch) -> int:
    """Measure the bytes of a client's own that a step keeps for its backward pass, its batch included."""
    collated = method.collate(batch)
    shared = {x.untyped_storage().data_ptr() for x in method.shared_tensors}
    sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in _tensors(batch).values()}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in shared:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    attention = sdpa_kernel(SDPBackend.MATH)
    with attention, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = method(collated)  # held, so that no storage is given to another meanwhile
    del loss
    return sum(sizes.values())


def _mapped(method: Method, like: Batch) -> Any:
    """Give the gradient and loss of (clients, trainable numbers), (clients, ...) tensors of a batch."""

    def loss(row: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return functional_call(method, _named(method, row), (_batch(tensors, like.stage),))

    return vmap(grad_and_value(loss), randomness="error")


def _named(method: Method, row: Tensor) -> dict[str, Tensor]:
    """Give the trainable tensors that a row (trainable numbers,) holds, as views."""
    parameters = method.trainable
    parts = row.split([p.numel() for p in parameters.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """Give a batch's tensors by dotted name, as functional transforms take them."""
    found = {"inputs": batch.inputs, "labels": batch.labels}
    if batch.real is not None:
        found["real"] = batch.real
    if batch.texts is not None:
        found |= {"texts.classes": batch.texts.classes, "texts.position": batch.texts.position}
        for part in batch.texts.branches:
            found |= {f"branches.{name}": x for name, x in vars(part).items()}
    return found


def _batch(tensors: Mapping[str, Tensor], stage: int) -> Batch:
    """Put `_tensors` together again."""
    texts: Texts | None = None
    branches: tuple[Branches, ...] = ()
    if "branches.nodes" in tensors:
        names = [field.name for field in fields(Branches)]
        branches = (Branches(**{name: tensors[f"branches.{name}"] for name in names}),)
    if "texts.classes" in tensors:
        texts = Texts(tensors["texts.classes"], tensors["texts.position"], branches)
    return Batch(tensors["inputs"], tensors["labels"], stage, None, texts, tensors.get("real"))


def _stacked_texts(texts: Sequence[Texts]) -> Texts:
    """Stack the prompts of several batches, filled up: with the first class, and nodes seen by none."""
    classes, position = _filled([x.classes for x in texts]), _filled([x.position for x in texts])
    branches = [part for x in texts for part in x.branches]
    if not branches:
        return Texts(classes, position, ())
    names = [field.name for field in fields(Branches) if field.name != "mask"]
    filled = {name: _filled([getattr(x, name) for x in branches]) for name in names}
    nodes = filled["nodes"].shape[1]
    mask = branches[0].mask.new_full((len(branches), nodes, nodes), float("-inf"))
    mask.diagonal(dim1=1, dim2=2).zero_()  # a node must see something, and a filled-in one sees itself
    for row, one in zip(mask, branches, strict=True):
        row[: len(one.nodes), : len(one.nodes)] = one.mask
    return Texts(classes, position, (Branches(mask=mask, **filled),))


def _filled(parts: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
