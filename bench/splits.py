"""How a task's training samples are divided among the clients.

A split is named and parameterised by a `SplitSpec` (one class a rule, listed in `SPLITS`), and
`make_split` turns it into one index array a client. The division depends on the labels, the number of
clients and the seed alone. `divide_test` divides the test samples in the same proportions, and `hold_out`
takes a validation part from every client.

The rules are written in numpy although flwr-datasets has partitioners of the same names:

* importing it adds over a second and tens of megabytes to a process whose time and memory are being
  measured, and would do so for some splits and not for others;
* `DirichletPartitioner` gives up after ten draws where clients are many (beta 0.1, 100 clients, 1,347
  samples), takes each class in the order of the file, always rounds the first clients down (with more
  clients than images of a class the same clients stay empty), and divides by zero when balancing at a
  tiny beta;
* `PathologicalPartitioner` cannot deal classes without sharing them, and drops classes with a warning;
* `IidPartitioner` does not shuffle.

The tests hold `DirichletSplit` against `DirichletPartitioner` with the same draws: the same division of
every class, to within rounding.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from flora.errors import BadInput, nearest

# Above this a Dirichlet draw is even to the last sample, and far above it the draw overflows.
_MAX_CONCENTRATION = 1e6

# Keep the division of the test samples, and the choice of those held out, apart from the other draws that
# are made by the split's seed.
_TEST_STREAM = 4
_HOLD_OUT_STREAM = 5


@dataclass(frozen=True, eq=False)
class Split:
    """Which training samples each client holds.

    Attributes:
        indices: one sorted int64 array a client, into the task's training set; read-only.
        fingerprint: SHA-256 (hex) of the number of clients, their sizes and their indices, in order.
        label_skew: how far the clients' label distributions are from the pooled one, in [0, 1):
            ``sum_i n_i / n * TV(p_i, p)``, where ``n_i`` is the size of client i, ``p_i`` its label
            distribution, ``p = sum_i n_i / n * p_i``, and ``TV(p_i, p) = sum_c |p_i(c) - p(c)| / 2``.
            0 when all clients have the same distribution, ``1 - 1/C`` when C equal clients have one
            class each.
    """

    indices: tuple[np.ndarray, ...]
    fingerprint: str
    label_skew: float

    @property
    def client_sizes(self) -> list[int]:
        """Samples of each client."""
        return [len(own) for own in self.indices]

    @property
    def size_skew(self) -> float:
        """Coefficient of variation of the client sizes: (population) standard deviation over mean."""
        return float(np.std(self.client_sizes) / np.mean(self.client_sizes))


@dataclass(frozen=True, eq=False)
class _Pool:
    """The samples to divide, with classes and domains numbered from 0 in ascending order.

    Attributes:
        classes: (C,) the labels that occur.
        labels: (n,) the number of each sample's class.
        domains: (n,) the number of each sample's domain, if the task has domains.
    """

    classes: np.ndarray
    labels: np.ndarray
    domains: np.ndarray | None

    @property
    def n_domains(self) -> int:
        return 0 if self.domains is None else int(self.domains.max()) + 1


class SplitSpec(BaseModel):
    """What every split has in common.

    Attributes:
        name: which split it is.
        shots: samples of each class that a client keeps, of the classes it has under the split's
            rule; None keeps all data.
        overlap: with shots, every client draws them from all training images of its classes, so that
            clients may share images (FLoRA's published code does this). Otherwise no image has two
            clients.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    shots: int | None = Field(None, ge=1)
    overlap: bool = False

    @model_validator(mode="after")
    def _overlap_needs_shots(self) -> SplitSpec:
        if self.overlap and self.shots is None:
            raise ValueError("overlap true has no meaning without shots; give shots, or overlap false")
        return self

    def groups(self, pool: _Pool) -> np.ndarray:
        """(n,) number of the group, counted from 0, in which shots are counted: the class."""
        return pool.labels

    def group_name(self, pool: _Pool, sample: int) -> str:
        """The sample's group in words, for messages."""
        return f"class {pool.classes[pool.labels[sample]]}"

    def holders(self, pool: _Pool, clients: int) -> np.ndarray:
        """(groups,) the most clients that must each have images (shots, else one) of their own of a group."""
        return np.ones(len(pool.classes), dtype=np.int64)

    def fewest_clients(self, pool: _Pool) -> int:
        """The fewest clients that the rule works with."""
        return 1

    def check(self, pool: _Pool, clients: int) -> None:
        """Refuse what the split's rule cannot do, shots aside.

        Raises:
            BadInput: naming the field and what would work.
        """

    def divide(self, pool: _Pool, clients: int, rng: np.random.Generator) -> np.ndarray:
        """(n,) the client of each sample; no client is without one."""
        raise NotImplementedError

    def holdings(self, pool: _Pool, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The groups that each client has under the split's rule."""
        owner = self.divide(pool, clients, rng)
        groups = self.groups(pool)
        return [np.unique(groups[owner == client]) for client in range(clients)]


class IidSplit(SplitSpec):
    """Every client gets an equal random share; with shots, that many of every class.

    Sizes differ by at most one. With shots, clients are disjoint unless `overlap` is set.
    """

    name: Literal["iid"] = "iid"

    def holders(self, pool: _Pool, clients: int) -> np.ndarray:
        """Every client, of every class, if shots are dealt."""
        return np.full(len(pool.classes), clients if self.shots else 1)

    def divide(self, pool: _Pool, clients: int, rng: np.random.Generator) -> np.ndarray:
        """Deal the samples round, class by class if shots of each class are needed."""
        owner = np.empty(len(pool.labels), dtype=np.int64)
        order = _shuffled(owner.size, rng, by=pool.labels if self.shots else None)
        owner[order] = np.arange(owner.size) % clients
        return owner

    def holdings(self, pool: _Pool, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Every class for every client."""
        return [np.arange(len(pool.classes))] * clients


class DirichletSplit(SplitSpec):
    """Label skew: each class is divided in proportions drawn from Dirichlet(beta).

    The division of Yurochkin et al., 2019 (https://arxiv.org/abs/1905.12022). Small beta gives high
    skew, large beta tends to IID. A client that the draw leaves empty gets one sample of the largest
    client, in place of drawing everything again.

    With shots, a client keeps that many of each class it holds after the division, or all it holds
    where that is fewer.

    Attributes:
        beta: concentration, above 0.
        cap: the option of FLoRA's published code. Classes are handed out in ascending order, and a
            client whose size has reached the mean client size (n / clients) takes nothing of the
            classes that follow; its surplus goes to the clients still below the mean, in their drawn
            proportions. All samples are used, and a client may pass the mean by part of one class.
    """

    name: Literal["dirichlet"] = "dirichlet"
    beta: float = Field(0.1, gt=0, le=_MAX_CONCENTRATION)
    cap: bool = False

    def divide(self, pool: _Pool, clients: int, rng: np.random.Generator) -> np.ndarray:
        """Divide the classes one after another, each in random order."""
        members = [rng.permutation(own) for own in _members(pool.labels)]
        owner = _dirichlet_owners(members, clients, self.beta, self.cap, rng)
        return _fill_empty(owner, clients, rng)


class PathologicalSplit(SplitSpec):
    """Label skew: each client has a fixed number of classes and nothing of the others.

    Classes are dealt so that each is used as often as any other, give or take one: none is left out,
    and none is shared before all are taken. A class is divided evenly among its clients. With shots,
    a client keeps that many of each of its classes.

    Attributes:
        classes_per_client: number of classes a client has. None deals every class out once, none
            shared, in hands that differ by at most one class: the paper's pathological few-shot split
            for any number of classes.
    """

    name: Literal["pathological"] = "pathological"
    classes_per_client: int | None = Field(2, ge=1)

    def holders(self, pool: _Pool, clients: int) -> np.ndarray:
        """The most clients that the deal can put on one class."""
        n_classes = len(pool.classes)
        most = -(-clients * self.classes_per_client // n_classes) if self.classes_per_client else 1
        return np.full(n_classes, most)

    def fewest_clients(self, pool: _Pool) -> int:
        """As many as it takes to use every class."""
        return -(-len(pool.classes) // self.classes_per_client) if self.classes_per_client else 1

    def check(self, pool: _Pool, clients: int) -> None:
        """Refuse hands that would leave a class or a client out."""
        n_classes, per_client = len(pool.classes), self.classes_per_client
        if per_client is None:
            if clients > n_classes:
                raise BadInput(
                    f"clients: {clients} cannot share out {n_classes} classes once each (split."
                    f"classes_per_client: null); use at most {n_classes} clients or give a number of classes"
                )
            return
        if per_client > n_classes:
            raise BadInput(
                f"split.classes_per_client: {per_client} is more than the task's {n_classes} classes; "
                f"use at most {n_classes}"
            )
        if clients < self.fewest_clients(pool):
            raise BadInput(
                f"split.classes_per_client: {per_client} for each of {clients} clients would leave "
                f"{n_classes - per_client * clients} of the {n_classes} classes out; "
                f"use at least {-(-n_classes // clients)}"
            )

    def divide(self, pool: _Pool, clients: int, rng: np.random.Generator) -> np.ndarray:
        """Deal the classes, then divide each evenly."""
        held = self.holdings(pool, clients, rng)
        hands = np.repeat(np.arange(clients), [len(hand) for hand in held])
        dealt = np.concatenate(held)
        owner = np.empty(len(pool.labels), dtype=np.int64)
        for number, members in enumerate(_members(pool.labels)):
            holders = hands[dealt == number]
            owner[rng.permutation(members)] = holders[np.arange(len(members)) % len(holders)]
        return owner

    def holdings(self, pool: _Pool, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Each client in turn takes the classes used least so far, ties drawn at random."""
        n_classes = len(pool.classes)
        if self.classes_per_client is None:
            return np.array_split(rng.permutation(n_classes), clients)
        return _deal(n_classes, self.classes_per_client, clients, rng)


class QuantitySplit(SplitSpec):
    """Size skew: client sizes drawn from Dirichlet(alpha), labels IID.

    The quantity skew of Li et al., 2021 (https://arxiv.org/abs/2102.02079). Every client has one sample
    before the rest are shared out. With shots, a client keeps that many of each class it holds after the
    division, or all it holds where that is fewer.

    Attributes:
        alpha: concentration, above 0; small is uneven.
    """

    name: Literal["quantity"] = "quantity"
    alpha: float = Field(1.0, gt=0, le=_MAX_CONCENTRATION)

    def divide(self, pool: _Pool, clients: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the sizes, then deal the shuffled samples out in these sizes."""
        n_samples = len(pool.labels)
        sizes = 1 + _counts(rng.dirichlet(np.full(clients, self.alpha)), n_samples - clients, rng.random())
        return rng.permutation(np.repeat(np.arange(clients), sizes))


class DomainSplit(SplitSpec):
    """Feature shift: client i has samples of domain i mod (number of domains) alone, or of several.

    Domains count in ascending order. The clients of one domain share it as in the IID split; with shots,
    each keeps that many of each class of each of its domains.

    Attributes:
        domains_per_client: number of domains a client has. Above 1 they are dealt at random, as the
            pathological split deals classes, so that each is used as often as any other, give or take one.
    """

    name: Literal["domain"] = "domain"
    domains_per_client: int = Field(1, ge=1)

    def groups(self, pool: _Pool) -> np.ndarray:
        """Number of the sample's class within its domain."""
        return np.unique(_domains(pool) * len(pool.classes) + pool.labels, return_inverse=True)[1]

    def group_name(self, pool: _Pool, sample: int) -> str:
        """Class and domain."""
        return f"{super().group_name(pool, sample)} in domain {_domains(pool)[sample]}"

    def holders(self, pool: _Pool, clients: int) -> np.ndarray:
        """The most clients that can have the group's domain, if shots are dealt."""
        domain_of_group = [_domains(pool)[own[0]] for own in _members(self.groups(pool))]
        sharing = self._most_clients(pool, clients)[domain_of_group]
        return sharing if self.shots else np.ones_like(sharing)

    def fewest_clients(self, pool: _Pool) -> int:
        """As many as it takes to use every domain."""
        return -(-pool.n_domains // self.domains_per_client)

    def check(self, pool: _Pool, clients: int) -> None:
        """Refuse a task without domains, hands that leave one out, domains with too few samples."""
        if pool.domains is None:
            raise BadInput(
                "split.name: domain needs a task with domains, and this one has none; "
                f"use {', '.join(name for name in SPLITS if name != 'domain')}"
            )
        if self.domains_per_client > pool.n_domains:
            raise BadInput(
                f"split.domains_per_client: {self.domains_per_client} is more than the task's "
                f"{pool.n_domains} domains; use at most {pool.n_domains}"
            )
        if clients < (fewest := self.fewest_clients(pool)):
            each = f" with {self.domains_per_client} domains each" if self.domains_per_client > 1 else ""
            raise BadInput(
                f"clients: {clients}{each} is fewer than the task's {pool.n_domains} domains; "
                f"use at least {fewest}"
            )
        sizes = np.bincount(pool.domains)
        if np.any(self._most_clients(pool, clients) > sizes):
            most = _largest(
                range(fewest, clients), lambda n: bool(np.all(self._most_clients(pool, n) <= sizes))
            )
            raise BadInput(
                f"clients: {clients} is too many for domains of {', '.join(map(str, sizes))} samples; "
                f"use at most {most}"
            )

    def divide(self, pool: _Pool, clients: int, rng: np.random.Generator) -> np.ndarray:
        """Deal the domains, then each domain's samples round among its clients."""
        hands = self._hands(pool, clients, rng)
        holders = np.repeat(np.arange(clients), self.domains_per_client)
        dealt = np.concatenate(hands)
        owner = np.empty(len(pool.labels), dtype=np.int64)
        for domain, members in enumerate(_members(_domains(pool))):
            by = pool.labels[members] if self.shots else None
            order = members[_shuffled(len(members), rng, by=by)]
            own_clients = holders[dealt == domain]
            owner[order] = own_clients[np.arange(len(order)) % len(own_clients)]
        return owner

    def holdings(self, pool: _Pool, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Every class of each of the client's domains."""
        groups = self.groups(pool)
        of_domain = [np.unique(groups[own]) for own in _members(_domains(pool))]
        hands = self._hands(pool, clients, rng)
        return [np.concatenate([of_domain[domain] for domain in np.sort(hand)]) for hand in hands]

    def _hands(self, pool: _Pool, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The domains of each client."""
        if self.domains_per_client == 1:
            return [np.array([client % pool.n_domains]) for client in range(clients)]
        return _deal(pool.n_domains, self.domains_per_client, clients, rng)

    def _most_clients(self, pool: _Pool, clients: int) -> np.ndarray:
        """(domains,) the most clients that the deal can put on each domain."""
        if self.domains_per_client == 1:
            return np.bincount(np.arange(clients) % pool.n_domains, minlength=pool.n_domains)
        return np.full(pool.n_domains, -(-clients * self.domains_per_client // pool.n_domains))


SPLITS: dict[str, type[SplitSpec]] = {
    spec.model_fields["name"].default: spec
    for spec in (IidSplit, DirichletSplit, PathologicalSplit, QuantitySplit, DomainSplit)
}


def describe_splits() -> dict[str, str]:
    """Each split's name with the first line of its docstring."""
    return {name: (spec.__doc__ or "").splitlines()[0] for name, spec in SPLITS.items()}


def _named(value: Any) -> Any:
    """Turn a bare name into a mapping, and refuse names and fields that are none.

    The errors here name the nearest valid choice, which pydantic's own do not.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    name = value.get("name")
    if name is None:
        raise ValueError(f"{dict(value)} has no name; choose from {', '.join(SPLITS)}")
    if not isinstance(name, str) or name not in SPLITS:
        raise ValueError(f"{name!r} is no split{nearest(str(name), SPLITS)}")
    fields = SPLITS[name].model_fields
    for field in value:
        if field not in fields:
            raise ValueError(f"{field!r} is no field of {name}{nearest(str(field), fields)}")
    return value


SplitConfig = Annotated[
    IidSplit | DirichletSplit | PathologicalSplit | QuantitySplit | DomainSplit,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
"""A split as a field of a larger pydantic model: accepts a bare name, a mapping or a `SplitSpec`."""


def make_split(
    spec: SplitSpec, labels: np.ndarray, clients: int, seed: int, domains: np.ndarray | None = None
) -> Split:
    """Divide the training samples among the clients.

    Args:
        spec: the rule and its parameters.
        labels: (n,) class of each training sample.
        clients: number of clients.
        seed: seed of the split's own random stream, at least 0; no other random state is read or changed.
        domains: (n,) domain of each training sample, for tasks that have domains.

    Returns:
        One non-empty index array a client. No sample has two clients, unless `spec.overlap`.

    Raises:
        BadInput: if the samples do not suffice for the split, saying what would work.
    """
    pool = _pool(labels, domains)
    _refuse_counts(len(pool.labels), clients)
    spec.check(pool, clients)
    _refuse_scarcity(spec, pool, clients)
    rng = np.random.default_rng(seed)
    if spec.shots is not None and spec.overlap:
        indices = _draw_from_pool(spec.groups(pool), spec.holdings(pool, clients, rng), spec.shots, rng)
    else:
        owner = spec.divide(pool, clients, rng)
        if spec.shots is not None:
            owner = _keep_shots(owner, spec.groups(pool), spec.shots, rng)
        indices = [np.flatnonzero(owner == client) for client in range(clients)]
    return _finished(indices, pool)


def divide_test(
    split: Split,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    train_domains: np.ndarray | None = None,
    test_domains: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, ...]:
    """Divide the test samples among the clients as the training samples were.

    The test samples of a class (where both sets have domains, of a class in a domain) go to the clients in
    the proportions of their training samples of it, to within one sample. Those of a class that no client
    holds go to nobody, and a client may get none.

    Args:
        split: the division of the training samples.
        train_labels: (n,) class of each training sample.
        test_labels: (m,) class of each test sample.
        train_domains: (n,) domain of each training sample, or None.
        test_domains: (m,) domain of each test sample, or None.
        seed: seed of this division's own random stream, at least 0.

    Returns:
        One sorted, read-only int64 array a client, into the test samples; no sample has two clients.

    Raises:
        BadInput: no test sample is of a class (in a domain) that a client trains on.
    """
    by_domain = train_domains is not None and test_domains is not None
    train_groups, test_groups = _common_groups(
        (train_labels, train_domains if by_domain else None),
        (test_labels, test_domains if by_domain else None),
    )
    n_groups = max(train_groups.max(initial=0), test_groups.max(initial=0)) + 1
    held = np.stack([np.bincount(train_groups[own], minlength=n_groups) for own in split.indices])
    rng = np.random.default_rng([_TEST_STREAM, seed])
    owner = np.full(len(test_groups), -1)
    for group in np.flatnonzero(held.sum(axis=0)):
        members = rng.permutation(np.flatnonzero(test_groups == group))
        owner[members] = np.repeat(np.arange(len(held)), _counts(held[:, group], len(members), rng.random()))
    if not np.any(owner >= 0):
        raise BadInput(
            f"a test set for each client: none of the {len(owner)} test images is of a class"
            f"{' and domain' if by_domain else ''} that a client trains on; use one test set for all clients"
        )
    return tuple(_read_only(np.flatnonzero(owner == client)) for client in range(len(held)))


def hold_out(
    split: Split, labels: np.ndarray, share: float, seed: int
) -> tuple[Split, tuple[np.ndarray, ...]]:
    """Take a validation part from every client's training samples.

    A client gives up `round(share * n)` of its n samples, of each class in proportion, and keeps one at
    least. What any client gives up, no client trains on: where clients share samples, a sample counts for
    all of its clients, and a client may then give up more.

    Args:
        split: the division to take from.
        labels: (n,) class of each training sample.
        share: fraction of each client's samples, between 0 and 1.
        seed: seed of this choice's own random stream, at least 0.

    Returns:
        The division of what remains, and what was held out of each client's samples, as sorted, read-only
        int64 indices of training samples.

    Raises:
        BadInput: no client has enough samples to give one up.
    """
    pool = _pool(labels, None)
    rng = np.random.default_rng([_HOLD_OUT_STREAM, seed])
    held = np.zeros(len(labels), dtype=bool)
    for own in split.indices:
        wanted = round(share * len(own)) - int(held[own].sum())
        held[_stratified(own[~held[own]], pool, wanted, rng)] = True
    for own in split.indices:
        if held[own].all():  # by rounding, or by the choices of clients that share its samples
            held[rng.choice(own)] = False
    parts = tuple(_read_only(own[held[own]]) for own in split.indices)
    if not any(map(len, parts)):
        raise BadInput(
            f"evaluation.validation_share: {share} of at most {max(split.client_sizes)} samples a client is "
            "none; use more, or give clients more samples"
        )
    return _finished([own[~held[own]] for own in split.indices], pool), parts


def class_counts(indices: Sequence[np.ndarray], labels: np.ndarray, n_classes: int) -> np.ndarray:
    """(clients, classes) how many samples of each class every client holds.

    Args:
        indices: those of a split.
        labels: (n,) of the training set, each from 0 to ``n_classes - 1``.
        n_classes: of the task, those included that no client has.
    """
    return np.stack([np.bincount(labels[own], minlength=n_classes) for own in indices])


def _common_groups(*sets: tuple[np.ndarray, np.ndarray | None]) -> list[np.ndarray]:
    """Number of each sample's class (and domain, where there is one), the same in every set."""
    pairs = [np.stack([labels, np.zeros_like(labels) if d is None else d]) for labels, d in sets]
    numbers = np.unique(np.concatenate(pairs, axis=1), axis=1, return_inverse=True)[1].reshape(-1)
    return np.split(numbers, np.cumsum([pair.shape[1] for pair in pairs])[:-1])


def _stratified(own: np.ndarray, pool: _Pool, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """As many of the samples as wanted, of each class in proportion."""
    if wanted <= 0:
        return own[:0]
    members = [own[rng.permutation(part)] for part in _members(pool.labels[own]) if len(part)]
    counts = _counts(np.array([len(part) for part in members]), wanted, rng.random())
    return np.concatenate([part[:count] for part, count in zip(members, counts, strict=True)])


def _read_only(indices: np.ndarray) -> np.ndarray:
    indices.flags.writeable = False
    return indices


def _pool(labels: np.ndarray, domains: np.ndarray | None) -> _Pool:
    classes, numbers = np.unique(labels, return_inverse=True)
    if domains is None:
        return _Pool(classes, numbers, None)
    if len(domains) != len(labels):
        raise BadInput(f"domains: {len(domains)} values for {len(labels)} samples; give one a sample")
    return _Pool(classes, numbers, np.unique(domains, return_inverse=True)[1])


def _domains(pool: _Pool) -> np.ndarray:
    assert pool.domains is not None, "DomainSplit.check comes first"
    return pool.domains


def _deal(n_cards: int, hand_size: int, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Numbers below `n_cards` for each client: each in turn takes those used least so far, ties at random."""
    used = np.zeros(n_cards, dtype=np.int64)
    hands = []
    for _ in range(clients):
        hand = _shuffled(n_cards, rng, by=used)[:hand_size]
        used[hand] += 1
        hands.append(hand)
    return hands


def _members(numbers: np.ndarray) -> list[np.ndarray]:
    """Ascending positions of each number from 0 to the largest."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers))[:-1])


def _shuffled(size: int, rng: np.random.Generator, by: np.ndarray | None = None) -> np.ndarray:
    """Positions in random order; sorted by a key, if given, with ties in random order."""
    order = rng.permutation(size)
    return order if by is None else order[np.argsort(by[order], kind="stable")]


def _counts(shares: np.ndarray, total: int, offset: float) -> np.ndarray:
    """Whole numbers that add up to total, in proportion to the shares.

    A random offset in [0, 1) makes the rounding fair (systematic sampling): the expected count of each
    is its share of the total. Without it the first would always be rounded down.
    """
    # Over the last cumulative value, not over 1: a share of 0 at the end stays 0 whatever was rounded.
    cumulative = np.cumsum(shares)
    cuts = (cumulative / cumulative[-1] * total + offset).astype(np.int64)
    return np.diff(np.minimum(cuts, total), prepend=0)


def _dirichlet_owners(
    members: list[np.ndarray], clients: int, beta: float, cap: bool, rng: np.random.Generator
) -> np.ndarray:
    """(n,) the client of each sample, given each class's samples in the order of handing out."""
    n_samples = sum(map(len, members))
    owner = np.empty(n_samples, dtype=np.int64)
    sizes = np.zeros(clients, dtype=np.int64)
    drawn = rng.dirichlet(np.full(clients, beta), size=len(members))
    for own, shares, offset in zip(members, drawn, rng.random(len(members)), strict=True):
        taking = _shares_among(shares, sizes < n_samples / clients) if cap else shares
        counts = _counts(taking, len(own), offset)
        owner[own] = np.repeat(np.arange(clients), counts)
        sizes += counts
    return owner


def _shares_among(shares: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The shares with those not chosen set to 0; even among the chosen if all of theirs underflowed to 0."""
    return shares * chosen if np.any(shares[chosen]) else chosen.astype(float)


def _fill_empty(owner: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
    """Give each client without a sample one of the client that has most at that moment."""
    sizes = np.bincount(owner, minlength=clients)
    for empty in np.flatnonzero(sizes == 0):
        largest = np.argmax(sizes)
        owner[rng.choice(np.flatnonzero(owner == largest))] = empty
        sizes[largest] -= 1
        sizes[empty] = 1
    return owner


def _keep_shots(owner: np.ndarray, groups: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """The owners with all but `shots` samples (at random) of each client and group set to -1."""
    key = owner * (groups.max() + 1) + groups
    order = _shuffled(len(key), rng, by=key)
    rank = np.arange(len(key)) - np.searchsorted(key[order], key[order])
    kept = np.full_like(owner, -1)
    chosen = order[rank < shots]
    kept[chosen] = owner[chosen]
    return kept


def _draw_from_pool(
    groups: np.ndarray, holdings: list[np.ndarray], shots: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """For each client, `shots` different samples of each of its groups, whoever else has them."""
    members = _members(groups)
    return [
        np.concatenate([rng.choice(members[group], shots, replace=False, shuffle=False) for group in held])
        for held in holdings
    ]


def _refuse_counts(n_samples: int, clients: int) -> None:
    if clients < 1:
        raise BadInput(f"clients: {clients} is no number of clients; use at least 1")
    if clients > n_samples:
        raise BadInput(
            f"clients: {clients} is more than the {n_samples} training samples; use at most {n_samples}"
        )


def _refuse_scarcity(spec: SplitSpec, pool: _Pool, clients: int) -> None:
    """Refuse if a group has fewer images than its clients need: shots each, else one each."""
    groups = spec.groups(pool)
    sizes = np.bincount(groups)

    def needed(shots: int, clients: int) -> np.ndarray:
        return shots * (np.ones_like(sizes) if spec.overlap else spec.holders(pool, clients))

    def fits(shots: int, clients: int) -> bool:
        return bool(np.all(needed(shots, clients) <= sizes))

    shots = spec.shots or 1
    if fits(shots, clients):
        return
    worst = int(np.argmin(sizes - needed(shots, clients)))
    ways = []
    if most := _largest(range(1, shots), lambda n: fits(n, clients)):
        ways.append(f"shots {most} at most")
    if most := _largest(range(spec.fewest_clients(pool), clients), lambda n: fits(shots, n)):
        ways.append(f"clients {most} at most")
    if spec.shots is not None and np.all(spec.shots <= sizes):
        ways.append("overlap true")
    raise BadInput(
        f"{_field(spec, clients)} needs {needed(shots, clients)[worst]} images of "
        f"{spec.group_name(pool, _members(groups)[worst][0])} ({shots} for each client that has it), "
        f"and there are {sizes[worst]}; use {' or '.join(ways) or 'another split'}"
    )


def _field(spec: SplitSpec, clients: int) -> str:
    """The field, with its value, that asks for too many images."""
    return (
        f"clients: {clients}" if spec.shots is None else f"split.shots: {spec.shots} with {clients} clients"
    )


def _largest(numbers: range, fits: Callable[[int], bool]) -> int:
    """The largest of the ascending numbers that fits, or 0; if one does not fit, no larger one does."""
    fitting = bisect.bisect_left(numbers, True, key=lambda n: not fits(n))
    return numbers[fitting - 1] if fitting else 0


def _finished(indices: list[np.ndarray], pool: _Pool) -> Split:
    own = tuple(_read_only(np.sort(part).astype(np.int64, copy=False)) for part in indices)
    return Split(own, _fingerprint(own), _label_skew(own, pool))


def _fingerprint(indices: tuple[np.ndarray, ...]) -> str:
    # Sizes first, so that the same samples divided at another place hash differently.
    digest = hashlib.sha256()
    for part in (np.array([len(indices), *map(len, indices)]), *indices):
        digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()


def _label_skew(indices: tuple[np.ndarray, ...], pool: _Pool) -> float:
    counts = class_counts(indices, pool.labels, len(pool.classes))
    sizes = counts.sum(axis=1)
    pooled = counts.sum(axis=0) / sizes.sum()
    distance = np.abs(counts / sizes[:, None] - pooled).sum(axis=1) / 2
    return float(sizes @ distance / sizes.sum())
