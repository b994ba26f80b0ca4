"""A client's work as three functions: start, step, finish.

One model serves every client, one at a time: a `ClientState` is the method, whose trainable parameters
`start` overwrites with what the server sent, and the client's optimiser over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor, nn

from flora.features import Batch, Samples
from flora.method import Method
from flora.settings import Adam, Training

# An optimiser's tensors (moments, step counts) by "<parameter index>.<name>".
OptimizerState = dict[str, Tensor]

# Small gradients would vanish in float16, so the loss is multiplied; by less where they would overflow. Tried
# anew in every step: no step is skipped, and nothing has to be carried from round to round.
HALF_PRECISION_LOSS_SCALES = (1024, 32, 1)

# Keeps the batch order apart from who takes part, whose seed is mostly the same number.
ORDER_STREAM = 2


@dataclass
class ClientState:
    """A client amid a round.

    Attributes:
        method: holds the parameters being trained.
        optimizer: over those parameters, in the order of `method.trainable`.
        training: what the client was asked to do.
        anchor: the parameters as they arrived, if FedProx holds the client near them.
        losses: sum over the samples seen of their batch's mean loss; on the device, so that no step waits.
        seen: samples seen.
        steps: batches seen.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    training: Training
    anchor: list[Tensor]
    losses: Tensor
    seen: int = 0
    steps: int = 0


def start(
    method: Method, tensors: Mapping[str, Tensor], training: Training, kept: OptimizerState | None
) -> ClientState:
    """Load what the server sent, and the optimiser's state where one was kept."""
    load(method, tensors)
    optimizer = optimizer_over(list(method.trainable.values()), training)
    if kept:
        _restore(optimizer, kept)
    anchor = [p.detach().clone() for p in method.trainable.values()] if training.proximal_mu else []
    return ClientState(method, optimizer, training, anchor, torch.zeros_like(method.clip.logit_scale))


def step(state: ClientState, batch: Batch) -> ClientState:
    """Take one optimiser step on `batch`; the loss that is counted is without FedProx's term."""
    loss = differentiate(state, batch)
    state.optimizer.step()
    size = len(batch.labels)
    state.losses += loss * size
    state.seen += size
    state.steps += 1
    return state


def differentiate(state: ClientState, batch: Batch) -> Tensor:
    """Leave in the parameters the gradients that a step on `batch` follows; gives the loss, detached."""
    batch = state.method.collate(batch)
    half = state.method.clip.compute_dtype == torch.float16
    for scale in HALF_PRECISION_LOSS_SCALES if half else (1,):
        state.optimizer.zero_grad(set_to_none=True)
        loss = state.method(batch)
        (loss * scale).backward()
        _fill_gradients(state.method)
        if not half or _gradients_are_finite(state):
            break
    _correct_gradients(state, scale)
    return loss.detach()


def _fill_gradients(method: Method) -> None:
    """Give what had no part in the loss a gradient of zero, as mapped gradients have: it still decays."""
    for parameter in method.trainable.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _gradients_are_finite(state: ClientState) -> bool:
    return all(bool(p.grad.isfinite().all()) for p in state.method.trainable.values() if p.grad is not None)


def _correct_gradients(state: ClientState, scale: int) -> None:
    """Take the loss scale out of the gradients, and add the gradient of FedProx's term."""
    if scale == 1 and not state.anchor:
        return
    for index, parameter in enumerate(state.method.trainable.values()):
        if parameter.grad is None:  # it had no part in this batch's loss
            continue
        parameter.grad.div_(scale)
        if state.anchor:
            away = parameter.detach() - state.anchor[index]
            parameter.grad.add_(away, alpha=state.training.proximal_mu)


def gradients(state: ClientState) -> dict[str, Tensor]:
    """Give the gradients that the last step followed, by trainable tensor."""
    return {name: p.grad for name, p in state.method.trainable.items() if p.grad is not None}


def finish(state: ClientState) -> dict[str, Tensor]:
    """Give the trained tensors, as views of the method's own; the gradients are let go."""
    state.optimizer.zero_grad(set_to_none=True)
    return {name: parameter.detach() for name, parameter in state.method.trainable.items()}


def load(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the method's trainable parameters with `tensors` of the same names."""
    with torch.no_grad():
        for name, parameter in method.trainable.items():
            parameter.copy_(tensors[name])


def optimizer_state(state: ClientState) -> OptimizerState:
    """Take the optimiser's tensors, to be kept until the client's next round."""
    by_parameter = state.optimizer.state_dict()["state"]
    return {f"{index}.{name}": x for index, entry in by_parameter.items() for name, x in entry.items()}


def order(indices: Tensor, training: Training, seed: tuple[int, ...]) -> Iterator[Tensor]:
    """Draw the batches of one client's round, as indices of samples.

    Args:
        indices: (n,) the client's samples.
        training: epochs or steps, batch size.
        seed: of this client in this round; a round can be repeated without those before it.
    """
    stream = np.random.default_rng([ORDER_STREAM, *seed])
    shuffled = (indices[torch.from_numpy(stream.permutation(len(indices)))] for _ in count())
    passes = islice(shuffled, training.local_epochs if training.local_steps is None else None)
    drawn = (chosen for samples_of_pass in passes for chosen in samples_of_pass.split(training.batch_size))
    return islice(drawn, training.local_steps)


def batches(samples: Samples, indices: Tensor, training: Training, seed: tuple[int, ...]) -> Iterator[Batch]:
    """Give the batches of one client's round, in their `order`."""
    return samples.batches_of(order(indices, training, seed))


def optimizer_over(parameters: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """Make the optimiser that a client is asked to use."""
    settings = training.optimizer
    values = settings.model_dump(exclude={"name", "state"})
    if isinstance(settings, Adam):
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        return kind(parameters, fused=True, **values)
    return torch.optim.SGD(parameters, **values)


def _restore(optimizer: torch.optim.Optimizer, kept: OptimizerState) -> None:
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for key, tensor in kept.items():
        index, name = key.split(".", 1)
        by_parameter.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": by_parameter})
