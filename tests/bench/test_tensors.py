"""The count of FLOPs and live tensor bytes, against torch's own and numbers counted by hand."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bench.catalogue import method_modules
from bench.cell import make_method
from bench.config import RunConfig
from bench.inputs import load_inputs
from bench.measure.tensors import CAUSES, Counter
from flora import client, group
from flora.settings import Training
from tests.flora import toy

WIDE = 64 * 2**20
BYTES = 8  # of a float64
FIGURES = ("flops", "operations", "created_bytes", "live_bytes", "peak_bytes", "peak_by_cause")


def first_step(built, batch, training):
    """What runs the first step of a client."""
    values = {name: p.detach().clone() for name, p in built.trainable.items()}
    return lambda: client.step(client.start(built, values, training, None), batch)


def flops_by_torch(work):
    with FlopCounterMode(display=False) as theirs:
        work()
    return theirs.get_total_flops()


def counted(work, **more):
    with Counter(**more) as counter:
        work()
    return counter


# --- FLOPs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in method_modules() if name != "zero_shot"])
def test_flops_of_a_step_are_those_that_torch_counts(name):
    config = RunConfig.read({"method": name, "data": {"max_train": 10, "max_test": 10}, "device": "cpu"})
    inputs = load_inputs(config)
    built = make_method(config, inputs)
    work = first_step(built, inputs.train.batch(torch.arange(8)), config.training)
    work()  # what is computed once in all is no part of a step
    assert counted(work).flops == flops_by_torch(work) > 0


def test_flops_of_mapped_clients_are_those_that_torch_counts():
    built, training = toy.method({"name": "flora"}), Training(batch_size=4)
    values = {name: p.detach().clone() for name, p in built.trainable.items()}
    batch = group.stack(built, toy.samples(), [torch.arange(4), torch.arange(4, 8)])

    def work():
        group.step(group.start(built, values, training, [None, None]), batch, [4, 4])

    assert counted(work).flops == flops_by_torch(work) > 0


def test_flops_of_a_linear_layer_are_two_a_weight_and_sample():
    layer, x = nn.Linear(7, 5), torch.ones(3, 7, requires_grad=True)
    assert counted(lambda: layer(x)).flops == 2 * 3 * 7 * 5
    assert counted(lambda: layer(x).sum().backward()).flops == 3 * 2 * 3 * 7 * 5


def test_flops_are_counted_where_operations_come_whole():
    layer, x = nn.Linear(7, 5), torch.ones(2, 3, 7)
    with torch.inference_mode():
        assert counted(lambda: layer(x)).flops == 2 * 6 * 7 * 5


def test_equal_shapes_with_other_strides_of_a_convolution_are_not_confused():
    x, weight = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 2, 2)
    counter = Counter()
    with counter:
        F.conv2d(x, weight, stride=2)
        assert counter.flops == 2 * 4 * 16
        F.conv2d(x, weight, stride=1)
    assert counter.flops == 2 * 4 * (16 + 49)


# --- memory --------------------------------------------------------------------------------------------


def mlp_step(fake=False, steps=1):
    """Steps of Adam on x (n, 4) @ a (4, 6), tanh, @ b (6, 3), summed, in float64."""
    with FakeTensorMode() if fake else nullcontext():
        a, b = (nn.Parameter(torch.ones(size, dtype=torch.float64)) for size in ((4, 6), (6, 3)))
        x = torch.ones(5, 4, dtype=torch.float64)
        optimizer = torch.optim.Adam([a, b], fused=True)
        with Counter({"parameters": [a, b], "buffers": [x]}, [a, b]) as counter:
            for _ in range(steps):
                optimizer.zero_grad()
                (torch.tanh(x @ a) @ b).sum().backward()
                before_step = counter.live_bytes
                optimizer.step()
        return figures(counter), before_step


def figures(counter):
    return {name: getattr(counter, name) for name in FIGURES}


def test_live_bytes_of_a_small_network_are_those_counted_by_hand():
    counted, before_step = mlp_step()
    parameters, x = 24 + 18, 20
    moments = 2 * parameters * BYTES + 2 * 4  # and two float32 counts of steps
    assert before_step == (2 * parameters + x) * BYTES  # the activations are gone
    assert counted["live_bytes"] == counted["peak_bytes"] == before_step + moments
    assert counted["peak_by_cause"] == {
        "parameters": parameters * BYTES,
        "gradients": parameters * BYTES,
        "optimizer_state": moments,
        "activations": 0,
        "buffers": x * BYTES,
    }


def test_the_height_of_a_backward_pass_is_that_counted_by_hand():
    a, x = nn.Parameter(torch.ones(4, 6, dtype=torch.float64)), torch.ones(5, 4, dtype=torch.float64)
    with Counter({"parameters": [a]}, [a]) as counter:
        y = torch.tanh(x @ a)
        assert counter.live_bytes == (24 + 30) * BYTES  # x is not held; x @ a is not needed any more
        assert counter.peak_bytes == (24 + 30 + 30) * BYTES
        y.backward(torch.ones_like(y))
    assert counter.live_bytes == (24 + 30 + 24) * BYTES
    assert counter.peak_bytes == (24 + 3 * 30 + 24) * BYTES  # y, its gradient, that of x @ a
    del y
    assert counter.live_bytes == (24 + 24) * BYTES


def test_fake_tensors_give_the_same_numbers_as_real_ones():
    for steps in (1, 2):
        assert mlp_step(False, steps) == mlp_step(True, steps)


def test_two_runs_give_the_same_numbers():
    built, training = toy.method({"name": "full_finetune"}), Training(batch_size=4)
    work = first_step(built, toy.samples().batch(torch.arange(4)), training)
    work()

    def once():
        return figures(
            counted(work, held={"parameters": built.parameters()}, trainable=built.trainable.values())
        )

    assert once() == once()


def test_a_planted_tensor_shows_and_is_let_go():
    with Counter() as counter:
        planted = torch.zeros(WIDE // 4)
        assert counter.live_bytes == counter.peak_bytes == counter.peak_by_cause["activations"] == WIDE
        del planted
        assert counter.live_bytes == 0
        torch.zeros(3)
    assert counter.peak_bytes == WIDE


def test_views_and_writing_in_place_create_nothing():
    outside = torch.ones(4, 4)
    with Counter() as counter:
        outside.view(2, 8).add_(1)[0].expand(3, 8).t().detach()
        outside.reshape(16).zero_()
        torch.add(outside, 1, out=outside)
    assert (counter.created_bytes, counter.peak_bytes, counter.operations > 0) == (0, 0, True)


def test_a_storage_counts_once_whatever_shares_it():
    x = torch.ones(6)
    counter = Counter({"parameters": [x, x[:3]], "buffers": [x.view(2, 3)]})
    assert counter.live_bytes == counter.peak_by_cause["parameters"] == 6 * 4
    assert list(counter.peak_by_cause) == list(CAUSES)


def test_what_an_optimizer_takes_is_found_out_when_it_does():
    with Counter() as counter:
        p = nn.Parameter(torch.ones(8))
        p.grad = torch.ones(8)
        torch.optim.SGD([p], momentum=0.9).step()
    assert counter.peak_by_cause == {
        "parameters": 32,
        "gradients": 32,
        "optimizer_state": 32,
        "activations": 0,
        "buffers": 0,
    }


def test_it_goes_on_counting_where_it_left_off_and_leaves_no_hook_behind():
    p = nn.Parameter(torch.ones(8))
    counter = Counter({}, [p])
    for expected in (1, 2):
        with counter:
            p * 2
        torch.ones(100) * 2  # not seen
        assert (counter.operations, counter.peak_bytes) == (expected, 32)
    p.grad = torch.ones(8)
    torch.optim.SGD([p]).step()
    assert counter.peak_bytes == 32
    assert not p._post_accumulate_grad_hooks


def test_an_unknown_cause_is_refused():
    with pytest.raises(ValueError, match="'weights' is none of the causes"):
        Counter({"weights": []})
