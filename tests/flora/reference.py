"""Federated FLoRA and full fine-tuning written down plainly, from the papers' formulas.

Nothing is cached, cut or split: open_clip's model stays as it is, every image has its prompt encoded at full
length, Adam is written out. It shares with the suite only what is drawn at random.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch.func import functional_call

LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 1e-2, 0.9, 0.98, 1e-6, 0.2


def text_features(model, lora, alpha, prompts):
    """CLIP's causal text tower, with `W x + b + alpha * B A x` at every attention's output layer."""
    weights = dict(model.text.named_parameters())
    n, length = prompts.shape
    x = weights["token_embedding.weight"][prompts] + weights["positional_embedding"]
    for index, (a, b) in enumerate(lora):
        w = {
            k.split(".", 3)[3]: v
            for k, v in weights.items()
            if k.startswith(f"transformer.resblocks.{index}.")
        }
        width = x.shape[-1]
        h = F.layer_norm(x, (width,), w["ln_1.weight"], w["ln_1.bias"])
        packed = h @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]
        query, key, value = (t.view(n, length, model.text.heads, -1) for t in packed.split(width, dim=-1))
        scores = torch.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(query.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        attention = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        attended = torch.einsum("nhqk,nkhd->nqhd", attention, value).reshape(n, length, width)
        out = attended @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        x = x + out + alpha * (attended @ a.T) @ b.T
        h = F.layer_norm(x, (width,), w["ln_2.weight"], w["ln_2.bias"])
        h = F.gelu(h @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"])
        x = x + h @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    x = F.layer_norm(x, (width,), weights["ln_final.weight"], weights["ln_final.bias"])
    at_end = x[torch.arange(n), prompts.argmax(dim=-1)]
    return at_end @ weights["text_projection"]


def contrastive(images, texts, scale):
    """Symmetric cross-entropy within the batch."""
    images = images / images.norm(dim=-1, keepdim=True)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    similarity = scale * images @ texts.T
    of_images = similarity.diag() - similarity.logsumexp(dim=1)
    of_texts = similarity.diag() - similarity.logsumexp(dim=0)
    return -(of_images.mean() + of_texts.mean()) / 2


def flora_loss(model, alpha):
    """Loss as a function of [A, B, A, B, ...], layer by layer."""

    def loss(parameters, images, prompts):
        lora = list(zip(parameters[::2], parameters[1::2], strict=True))
        texts = text_features(model, lora, alpha, prompts)
        return contrastive(model.visual(images), texts, model.logit_scale.exp())

    return loss


def full_loss(model):
    """Loss as a function of all parameters, in the order of `named_parameters`."""
    names = [name for name, _ in model.named_parameters()]

    def loss(parameters, images, prompts):
        given = dict(zip(names, parameters, strict=True))
        return contrastive(*functional_call(model, given, (images, prompts)))

    return loss


def adam_step(parameters, gradients, state):
    """Adam with L2 regularisation (arXiv 1412.6980, algorithm 1)."""
    state["t"] += 1
    for p, g, m, v in zip(parameters, gradients, state["m"], state["v"], strict=True):
        decayed = g + WEIGHT_DECAY * p
        m.copy_(BETA1 * m + (1 - BETA1) * decayed)
        v.copy_(BETA2 * v + (1 - BETA2) * decayed**2)
        m_hat = m / (1 - BETA1 ** state["t"])
        v_hat = v / (1 - BETA2 ** state["t"])
        p.sub_(LR * m_hat / (v_hat.sqrt() + EPS))


def train(loss, start, rounds, *, sizes, draw, keep):
    """Federated averaging.

    Args:
        loss: of (parameters, images, prompts).
        start: the first global parameters.
        rounds: who takes part in each round.
        sizes: samples of each client.
        draw: from (round, client) to that client's batches (images, prompts).
        keep: whether a client's Adam state lasts from round to round.

    Returns:
        The last global parameters, and the mean loss of each round.
    """
    server, states, losses = start, {}, []
    for number, clients in enumerate(rounds, start=1):
        total = sum(sizes[c] for c in clients)
        average = [torch.zeros_like(p) for p in server]
        of_client = {c: [] for c in clients}
        for c in clients:
            local = [p.clone() for p in server]
            if c not in states or not keep:
                states[c] = {"t": 0, "m": [torch.zeros_like(p) for p in local]}
                states[c]["v"] = [torch.zeros_like(p) for p in local]
            for images, prompts in draw(number, c):
                for p in local:
                    p.requires_grad_(True)
                value = loss(local, images, prompts)
                gradients = torch.autograd.grad(value, local)
                local = [p.detach() for p in local]
                adam_step(local, gradients, states[c])
                of_client[c].append((value.item(), len(images)))
            for mean, p in zip(average, local, strict=True):
                mean.add_(sizes[c] / total * p)
        server = average
        losses.append(sum(sizes[c] / total * _mean(of_client[c]) for c in clients))
    return server, losses


def _mean(batches):
    """Mean of (loss, images) pairs over the images."""
    return sum(loss * images for loss, images in batches) / sum(images for _, images in batches)
