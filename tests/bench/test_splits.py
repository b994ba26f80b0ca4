"""The division of samples among clients: what holds for every split, closed forms, refusals, traps.

Likewise of the test samples, and of what is held out for validation.
"""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from scipy.stats import chisquare

from bench import splits
from bench.splits import (
    SPLITS,
    DirichletSplit,
    DomainSplit,
    IidSplit,
    PathologicalSplit,
    QuantitySplit,
    SplitConfig,
    describe_splits,
    divide_test,
    hold_out,
    make_split,
)
from flora.errors import BadInput

# Classes with gaps in their numbers, unequal, in the order of a file sorted by class.
LABELS = np.repeat([0, 2, 3, 7], [40, 60, 30, 50])
DOMAINS = np.arange(180) % 3
EQUAL = np.repeat(np.arange(10), 100)


def class_counts(split, labels):
    """(clients, classes) samples of each class of each client."""
    classes = np.unique(labels)
    return np.array([[np.sum(labels[own] == c) for c in classes] for own in split.indices])


FEW = st.integers(1, 4)


@st.composite
def cases(draw, shots):
    """A split and something to divide, which suffices up to 4 shots: (spec, labels, clients, domains)."""
    sizes = draw(st.lists(st.integers(30, 60), min_size=2, max_size=6))
    labels = np.array(draw(st.randoms(use_true_random=False)).sample(list(range(50)), len(sizes)))
    labels = np.repeat(labels, sizes)
    domains = np.arange(labels.size) % 2
    clients = draw(st.integers(2, 6))
    name = draw(st.sampled_from(list(SPLITS)))
    options = {"shots": draw(shots)}
    if name == "dirichlet":
        options |= {"beta": draw(st.floats(1e-3, 1e3)), "cap": draw(st.booleans())}
    if name == "pathological":
        options["classes_per_client"] = draw(st.integers(-(-len(sizes) // clients), len(sizes)))
    if name == "quantity":
        options["alpha"] = draw(st.floats(1e-3, 1e3))
    if name == "domain" and clients * (options["shots"] or 1) <= 15:  # of a class in a domain
        options["domains_per_client"] = draw(st.integers(1, 2))
    return SPLITS[name](**options), labels, clients, domains


class TestEverySplit:
    @given(cases(st.none() | FEW), st.integers(0, 2**32))
    @settings(max_examples=150, deadline=None)
    def test_no_sample_has_two_clients_and_no_client_is_empty(self, case, seed):
        spec, labels, clients, domains = case
        split = make_split(spec, labels, clients, seed, domains)
        used = np.concatenate(split.indices)
        assert len(split.indices) == clients
        assert min(split.client_sizes) >= 1
        assert np.unique(used).size == used.size
        assert used.min() >= 0
        assert used.max() < labels.size
        assert all(own.dtype == np.int64 and np.all(np.diff(own) > 0) for own in split.indices)

    @given(cases(st.none()), st.integers(0, 2**32))
    @settings(max_examples=100, deadline=None)
    def test_without_shots_every_sample_is_used(self, case, seed):
        spec, labels, clients, domains = case
        split = make_split(spec, labels, clients, seed, domains)
        assert np.array_equal(np.sort(np.concatenate(split.indices)), np.arange(labels.size))

    @given(cases(st.none() | FEW), st.integers(0, 2**32))
    @settings(max_examples=60, deadline=None)
    def test_depends_on_the_seed_alone(self, case, seed):
        spec, labels, clients, domains = case
        first = make_split(spec, labels, clients, seed, domains)
        np.random.seed(1)  # noqa: NPY002 - the global stream is what must not matter
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        again = make_split(spec, labels.copy(), clients, seed, domains)
        assert again.fingerprint == first.fingerprint
        assert all(map(np.array_equal, again.indices, first.indices))
        assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002

    @pytest.mark.parametrize("name", SPLITS)
    def test_another_seed_is_another_split(self, name):
        made = {make_split(SPLITS[name](), LABELS, 6, seed, DOMAINS).fingerprint for seed in range(5)}
        assert len(made) == 5

    @given(cases(FEW), st.integers(0, 2**32))
    @settings(max_examples=150, deadline=None)
    def test_shots_count_each_class_of_each_client(self, case, seed):
        spec, labels, clients, domains = case
        split = make_split(spec, labels, clients, seed, domains)
        counts = class_counts(split, labels)
        if spec.name in ("dirichlet", "quantity"):
            assert counts.max() <= spec.shots
        elif spec.name == "pathological":
            assert set(np.unique(counts)) <= {0, spec.shots}
        else:
            assert np.all(counts == spec.shots * getattr(spec, "domains_per_client", 1))
        if spec.name == "pathological":
            assert np.all((counts > 0).sum(axis=1) == spec.classes_per_client)

    @pytest.mark.parametrize(
        ("name", "clients"),
        [(name, n) for name in ("iid", "dirichlet", "quantity") for n in (1, 180)]
        + [("domain", 3), ("domain", 180), ("pathological", 2), ("pathological", 60)],
    )
    def test_the_fewest_and_the_most_clients(self, name, clients):
        split = make_split(SPLITS[name](), LABELS, clients, 0, DOMAINS)
        assert sum(split.client_sizes) == 180
        assert min(split.client_sizes) >= 1

    @pytest.mark.parametrize(
        "spec",
        [
            IidSplit(),
            DirichletSplit(beta=1e3),
            PathologicalSplit(classes_per_client=1),
            QuantitySplit(alpha=1e3),
            DomainSplit(),
            DirichletSplit(beta=1e3, shots=20),
            IidSplit(shots=20, overlap=True),
        ],
        ids=str,
    )
    def test_place_in_the_file_does_not_matter(self, spec):
        """Two clients of 20 of 40 like samples: over 200 seeds, each sample is the first's half the time."""
        like = np.zeros(40, dtype=int)
        first = np.zeros(40)
        for seed in range(200):
            first[make_split(spec, like, 2, seed, like).indices[0]] += 1
        assert np.all(np.abs(first / 200 - 0.5) < 0.2)

    @pytest.mark.parametrize("name", SPLITS)
    def test_arrays_cannot_be_changed_behind_the_fingerprint(self, name):
        split = make_split(SPLITS[name](), LABELS, 3, 0, DOMAINS)
        with pytest.raises(ValueError, match="read-only"):
            split.indices[0][0] = 1


class TestOverlap:
    @given(cases(st.integers(1, 30)), st.integers(0, 2**32))
    @settings(max_examples=80, deadline=None)
    def test_every_client_has_all_shots_of_its_classes_once(self, case, seed):
        spec, labels, clients, domains = case
        if spec.name == "domain":
            domains = np.zeros_like(labels)
            spec = spec.model_copy(update={"domains_per_client": 1})
        spec = spec.model_copy(update={"overlap": True})
        split = make_split(spec, labels, clients, seed, domains)
        assert set(np.unique(class_counts(split, labels))) <= {0, spec.shots}
        assert all(np.unique(own).size == own.size for own in split.indices)
        if spec.name == "iid":
            assert split.client_sizes == [spec.shots * np.unique(labels).size] * clients

    def test_clients_share_images_that_would_not_suffice_for_all(self):
        split = make_split(IidSplit(shots=20, overlap=True), LABELS, 10, 0)
        used = np.concatenate(split.indices)
        assert split.client_sizes == [80] * 10
        assert np.unique(used).size < used.size
        assert len({own.tobytes() for own in split.indices}) == 10

    def test_domains_stay_apart(self):
        split = make_split(DomainSplit(shots=5, overlap=True), LABELS, 9, 0, DOMAINS)
        for client, own in enumerate(split.indices):
            assert set(DOMAINS[own]) == {client % 3}

    def test_pathological_classes_are_those_of_the_rule(self):
        split = make_split(PathologicalSplit(shots=25, overlap=True), LABELS, 8, 0)
        assert np.all((class_counts(split, LABELS) == 25).sum(axis=1) == 2)


class TestClassCounts:
    def test_every_class_of_the_task_has_a_column_whoever_has_it(self):
        counts = splits.class_counts(make_split(PathologicalSplit(shots=5), LABELS, 4, 0).indices, LABELS, 9)
        assert counts.shape == (4, 9)
        assert counts[:, [1, 4, 5, 6, 8]].sum() == 0

    def test_it_counts_as_one_counts_by_hand(self):
        split = make_split(DirichletSplit(beta=0.3), LABELS, 6, 0)
        counts = splits.class_counts(split.indices, LABELS, 8)
        assert np.array_equal(counts[:, [0, 2, 3, 7]], class_counts(split, LABELS))


class TestIid:
    def test_sizes_differ_by_at_most_one(self):
        assert sorted(make_split(IidSplit(), LABELS, 7, 0).client_sizes) == [25] * 2 + [26] * 5

    def test_is_shuffled_though_the_file_is_sorted(self):
        """A contiguous division of a sorted file would give each client one class."""
        assert make_split(IidSplit(), EQUAL, 10, 0).label_skew < 0.2

    def test_labels_are_independent_of_the_client(self):
        counts = class_counts(make_split(IidSplit(), np.repeat(EQUAL, 10), 10, 0), np.repeat(EQUAL, 10))
        assert chisquare(counts.ravel()).pvalue > 1e-3

    def test_few_shot_has_no_label_skew(self):
        split = make_split(IidSplit(shots=3), LABELS, 10, 0)
        assert split.client_sizes == [12] * 10
        assert split.label_skew == 0
        assert split.size_skew == 0


class TestDirichlet:
    @pytest.mark.parametrize("cap", [False, True])
    def test_skew_falls_from_one_class_each_to_iid(self, cap):
        skews = [
            np.mean([make_split(DirichletSplit(beta=b, cap=cap), EQUAL, 10, s).label_skew for s in range(10)])
            for b in (0.01, 0.1, 1.0, 10.0, 1e4)
        ]
        assert np.all(np.diff(skews) < 0)
        assert skews[0] > 0.7
        assert skews[-1] < 0.02

    @pytest.mark.parametrize("cap", [False, True])
    @pytest.mark.parametrize("seed", range(5))
    def test_the_default_task_at_the_papers_beta(self, cap, seed):
        labels = np.arange(1347) % 10
        split = make_split(DirichletSplit(beta=0.1, cap=cap), labels, 10, seed)
        assert sum(split.client_sizes) == 1347
        assert min(split.client_sizes) >= 1
        assert 0.4 < split.label_skew < 0.9

    @pytest.mark.parametrize("beta", [1e-300, 1e-3, 0.1, 1e6])
    @pytest.mark.parametrize("cap", [False, True])
    @pytest.mark.parametrize("clients", [2, 500])
    def test_many_clients_and_extreme_betas_succeed_without_a_warning(self, beta, cap, clients):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            split = make_split(DirichletSplit(beta=beta, cap=cap), EQUAL, clients, 0)
        assert sum(split.client_sizes) == 1000
        assert min(split.client_sizes) >= 1

    def test_cap_closes_a_client_that_has_reached_the_mean(self):
        """Replayed class by class: whoever gets samples of a class was below the mean before."""

        def passed_the_mean(cap, seed):
            counts = class_counts(make_split(DirichletSplit(beta=0.5, cap=cap), EQUAL, 8, seed), EQUAL)
            before = np.cumsum(counts, axis=1) - counts
            return np.any(before[counts > 0] >= 1000 / 8)

        assert not any(passed_the_mean(True, seed) for seed in range(20))
        assert any(passed_the_mean(False, seed) for seed in range(20))

    def test_rounding_favours_no_client(self):
        """More clients than images of a class: floors alone would leave the first clients empty."""
        labels = np.repeat(np.arange(20), 10)
        sizes = np.sum(
            [make_split(DirichletSplit(beta=1e6), labels, 40, s).client_sizes for s in range(100)], axis=0
        )
        assert sizes.mean() == 500
        assert np.all(np.abs(sizes - 500) < 150)

    @given(
        st.lists(st.floats(1e-9, 1), min_size=1, max_size=8), st.integers(0, 10**6), st.floats(0, 1 - 2**-53)
    )
    def test_rounding_loses_nothing_and_is_off_by_less_than_one(self, shares, total, offset):
        counts = splits._counts(np.array(shares), total, offset)
        assert counts.sum() == total
        assert np.all(np.abs(counts - np.array(shares) / sum(shares) * total) < 1 + 1e-6)

    def test_rounding_survives_the_largest_offset(self):
        assert splits._counts(np.ones(2), 500, 1 - 2**-53).sum() == 500

    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_flwr_datasets_to_within_rounding(self, seed):
        """With the same draws, the same division of every class."""
        partitioners = pytest.importorskip("flwr_datasets.partitioner")
        from datasets import Dataset

        labels = np.random.default_rng(seed).integers(0, 7, 3001)
        theirs = partitioners.DirichletPartitioner(
            9, "label", alpha=0.3, min_partition_size=0, self_balancing=False, shuffle=False, seed=seed
        )
        theirs.dataset = Dataset.from_dict({"label": labels, "index": np.arange(labels.size)})
        expected = np.array(
            [np.bincount(labels[theirs.load_partition(i)["index"]], minlength=7) for i in range(9)]
        )
        owner = splits._dirichlet_owners(
            [np.flatnonzero(labels == c) for c in range(7)], 9, 0.3, False, np.random.default_rng(seed)
        )
        ours = np.array([np.bincount(labels[owner == i], minlength=7) for i in range(9)])
        assert np.abs(ours - expected).max() <= 1
        assert expected.max() > 100

    def test_shots_keep_what_there_is_where_a_client_holds_fewer(self):
        whole = make_split(DirichletSplit(beta=0.5), LABELS, 6, 3)
        few = make_split(DirichletSplit(beta=0.5, shots=5), LABELS, 6, 3)
        assert np.array_equal(class_counts(few, LABELS), np.minimum(class_counts(whole, LABELS), 5))
        assert all(map(np.all, map(np.isin, few.indices, whole.indices)))


class TestPathological:
    @given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 2**32), st.data())
    @settings(max_examples=100, deadline=None)
    def test_deal_is_even_complete_and_shares_no_class_too_early(self, n_classes, clients, seed, data):
        per_client = data.draw(st.integers(min(n_classes, -(-n_classes // clients)), n_classes))
        labels = np.repeat(np.arange(n_classes), 30)
        spec = PathologicalSplit(classes_per_client=per_client)
        counts = class_counts(make_split(spec, labels, clients, seed), labels)
        holders = (counts > 0).sum(axis=0)
        assert np.all((counts > 0).sum(axis=1) == per_client)
        assert np.ptp(holders) <= 1
        assert holders.min() >= 1
        if clients * per_client <= n_classes:
            assert holders.max() == 1
        for c in range(n_classes):
            assert np.ptp(counts[counts[:, c] > 0, c]) <= 1

    def test_few_shot_of_the_paper_shares_no_class(self):
        """37 classes for 10 clients, as in Oxford-IIIT Pet."""
        labels = np.repeat(np.arange(37), 20)
        split = make_split(PathologicalSplit(classes_per_client=None, shots=16), labels, 10, 0)
        counts = class_counts(split, labels)
        assert np.all((counts > 0).sum(axis=0) == 1)
        assert np.all(counts.sum(axis=0) == 16)
        assert set((counts > 0).sum(axis=1)) == {3, 4}

    def test_classes_are_dealt_at_random(self):
        hands = {
            tuple(np.unique(EQUAL[make_split(PathologicalSplit(), EQUAL, 5, seed).indices[0]]))
            for seed in range(10)
        }
        assert len(hands) > 5


class TestQuantity:
    def test_sizes_are_skewed_and_labels_are_not(self):
        labels = np.repeat(EQUAL, 20)
        split = make_split(QuantitySplit(alpha=0.5), labels, 10, 0)
        assert split.size_skew > 0.5
        assert split.label_skew < 0.05

    def test_alpha_sets_the_skew(self):
        """Shares from Dirichlet(a) over m clients have a coefficient of variation sqrt((m-1)/(m a + 1))."""
        for alpha in (0.5, 5.0):
            skews = [make_split(QuantitySplit(alpha=alpha), EQUAL, 10, s).size_skew for s in range(300)]
            expected = np.sqrt(9 / (10 * alpha + 1)) * (1000 - 10) / 1000
            assert np.sqrt(np.mean(np.square(skews))) == pytest.approx(expected, rel=0.08)

    def test_as_many_clients_as_samples(self):
        assert make_split(QuantitySplit(alpha=1e-300), LABELS, 180, 0).client_sizes == [1] * 180


class TestDomain:
    @pytest.mark.parametrize("shots", [None, 3])
    def test_client_i_belongs_to_domain_i_mod_n(self, shots):
        split = make_split(DomainSplit(shots=shots), LABELS, 8, 0, DOMAINS)
        for client, own in enumerate(split.indices):
            assert set(DOMAINS[own]) == {client % 3}

    def test_domains_may_be_named(self):
        named = np.array(["amazon", "dslr", "webcam"])[DOMAINS]
        assert (
            make_split(DomainSplit(), LABELS, 5, 0, named).fingerprint
            == make_split(DomainSplit(), LABELS, 5, 0, DOMAINS).fingerprint
        )

    def test_shots_count_the_classes_that_the_domain_has(self):
        labels = np.repeat([0, 1, 2], 20)
        domains = np.repeat([0, 1], [40, 20])
        counts = class_counts(make_split(DomainSplit(shots=4), labels, 4, 0, domains), labels)
        assert counts.tolist() == [[4, 4, 0], [0, 0, 4]] * 2

    @given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 2**32), st.data())
    @settings(max_examples=100, deadline=None)
    def test_a_mix_is_even_complete_and_shares_no_domain_too_early(self, n_domains, clients, seed, data):
        per_client = data.draw(st.integers(min(n_domains, -(-n_domains // clients)), n_domains))
        domains = np.repeat(np.arange(n_domains), 40)
        spec = DomainSplit(domains_per_client=per_client)
        split = make_split(spec, np.arange(domains.size) % 4, clients, seed, domains)
        counts = class_counts(split, domains)
        holders = (counts > 0).sum(axis=0)
        assert np.all((counts > 0).sum(axis=1) == per_client)
        assert counts.sum() == domains.size
        assert np.ptp(holders) <= 1
        for domain in range(n_domains):
            assert np.ptp(counts[counts[:, domain] > 0, domain]) <= 1

    def test_a_mix_of_all_domains_gives_each_client_its_part_of_each(self):
        split = make_split(DomainSplit(domains_per_client=3), LABELS, 6, 0, DOMAINS)
        assert class_counts(split, DOMAINS).tolist() == [[10, 10, 10]] * 6

    @pytest.mark.parametrize("overlap", [False, True])
    def test_shots_of_a_mix_count_each_class_of_each_domain(self, overlap):
        spec = DomainSplit(domains_per_client=2, shots=2, overlap=overlap)
        split = make_split(spec, LABELS, 6, 0, DOMAINS)
        groups = LABELS * 10 + DOMAINS
        counts = class_counts(split, groups)
        assert set(np.unique(counts)) == {0, 2}
        assert np.all((counts > 0).sum(axis=1) == 2 * 4)

    def test_mixes_are_dealt_at_random(self):
        domains = np.arange(180) % 5
        hands = {
            tuple(np.unique(domains[make_split(spec, LABELS, 5, seed, domains).indices[0]]))
            for spec in [DomainSplit(domains_per_client=2)]
            for seed in range(10)
        }
        assert len(hands) > 3


class TestTestSets:
    @given(cases(st.none() | FEW), st.integers(0, 2**32), st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_each_class_is_divided_as_in_training_to_within_one_image(self, case, seed, by_domain):
        spec, labels, clients, domains = case
        split = make_split(spec, labels, clients, seed, domains)
        stream = np.random.default_rng(seed)
        chosen = stream.integers(0, labels.size, 200)
        test, test_domains = labels[chosen], domains[chosen] if by_domain else None
        parts = divide_test(split, labels, test, domains, test_domains, seed)
        train_groups = labels * 10 + (domains if by_domain else 0)
        test_groups = test * 10 + (test_domains if by_domain else 0)
        for group in np.unique(test_groups):
            held = np.array([np.sum(train_groups[own] == group) for own in split.indices])
            given_ = np.array([np.sum(test_groups[part] == group) for part in parts])
            if held.sum():
                size = np.sum(test_groups == group)
                assert given_.sum() == size
                assert np.all(np.abs(given_ - held / held.sum() * size) < 1 + 1e-6)
                assert np.all(given_[held == 0] == 0)
            else:
                assert given_.sum() == 0
        together = np.concatenate(parts)
        assert np.unique(together).size == together.size
        assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)

    def test_equal_shares_of_each_class_are_divided_equally(self):
        split = make_split(IidSplit(shots=3), LABELS, 5, 0)
        test = np.repeat([0, 2, 3, 7], [10, 25, 40, 5])
        parts = divide_test(split, LABELS, test)
        assert [[np.sum(test[part] == c) for c in (0, 2, 3, 7)] for part in parts] == [[2, 5, 8, 1]] * 5

    def test_disjoint_classes_give_each_client_all_test_images_of_its_own(self):
        split = make_split(PathologicalSplit(classes_per_client=None), LABELS, 3, 1)
        test = np.tile([7, 0, 2, 3], 9)
        for own, part in zip(split.indices, divide_test(split, LABELS, test, seed=4), strict=True):
            assert np.array_equal(part, np.flatnonzero(np.isin(test, LABELS[own])))

    def test_disjoint_domains_stay_apart(self):
        split = make_split(DomainSplit(), LABELS, 3, 0, DOMAINS)
        domains = np.arange(90) % 3
        for client, part in enumerate(
            divide_test(split, LABELS, np.repeat(LABELS, 1)[::2], DOMAINS, domains)
        ):
            assert np.array_equal(part, np.flatnonzero(domains == client))

    def test_a_class_that_no_client_holds_and_a_domain_of_no_client_go_to_nobody(self):
        split = make_split(IidSplit(), np.array([0, 0, 1, 1]), 2, 0)
        train = np.array([0, 0, 1, 1])
        assert np.concatenate(divide_test(split, train, np.array([5, 0, 5, 1]))).tolist() in ([1, 3], [3, 1])
        parts = divide_test(split, train, np.zeros(4, int), np.zeros(4, int), np.array([0, 1, 1, 1]))
        assert np.concatenate(parts).tolist() == [0]

    def test_an_image_shared_by_clients_counts_for_each(self):
        split = splits._finished(
            [np.array([0, 1]), np.array([0, 1]), np.array([2])], splits._pool(np.zeros(3, int), None)
        )
        parts = divide_test(split, np.zeros(3, int), np.zeros(50, int))
        assert [len(part) for part in parts] == [20, 20, 10]

    def test_depends_on_the_seed_alone_and_favours_no_place_in_the_file(self):
        split = make_split(IidSplit(), LABELS, 2, 0)
        first = np.zeros(40)
        for seed in range(200):
            parts, again = (divide_test(split, LABELS, np.full(40, 2), seed=seed) for _ in range(2))
            assert all(map(np.array_equal, parts, again))
            first[parts[0]] += 1
        assert np.all(np.abs(first / 200 - first.mean() / 200) < 0.2)
        with pytest.raises(ValueError, match="read-only"):
            parts[0][0] = 1

    def test_nothing_to_give_is_refused(self):
        split = make_split(DomainSplit(), LABELS, 3, 0, DOMAINS)
        with pytest.raises(BadInput, match="none of the 180 test images is of a class and domain that"):
            divide_test(split, LABELS, LABELS, DOMAINS, DOMAINS + 3)


class TestHoldOut:
    @given(cases(st.none() | st.integers(2, 4)), st.floats(0.05, 0.95), st.integers(0, 2**32))
    @settings(max_examples=100, deadline=None)
    def test_takes_the_share_of_each_client_and_class_and_leaves_the_rest(self, case, share, seed):
        spec, labels, clients, domains = case
        split = make_split(spec, labels, clients, seed, domains)
        assume(any(len(own) > 1 and round(share * len(own)) for own in split.indices))
        rest, held = hold_out(split, labels, share, seed)
        for own, kept, given_ in zip(split.indices, rest.indices, held, strict=True):
            assert np.array_equal(np.sort(np.concatenate([kept, given_])), own)
            assert len(given_) == min(round(share * len(own)), len(own) - 1)
            for label in np.unique(labels[own]):
                of_class = np.sum(labels[own] == label)
                exact = of_class * len(given_) / len(own)
                assert abs(np.sum(labels[given_] == label) - exact) < 1 + 1e-6

    @given(st.integers(1, 30), st.integers(1, 8), st.floats(0.05, 0.95), st.integers(0, 2**32))
    @settings(max_examples=100, deadline=None)
    def test_no_shared_sample_is_trained_on_by_one_client_and_held_out_by_another(
        self, shots, clients, share, seed
    ):
        split = make_split(IidSplit(shots=shots, overlap=True), LABELS, clients, seed)
        assume(round(share * 4 * shots))
        rest, held = hold_out(split, LABELS, share, seed)
        assert not set(np.concatenate(rest.indices)) & set(np.concatenate(held))
        assert min(rest.client_sizes) >= 1
        for own, kept, given_ in zip(split.indices, rest.indices, held, strict=True):
            assert np.array_equal(np.sort(np.concatenate([kept, given_])), own)

    def test_a_client_whose_samples_the_others_would_all_hold_out_keeps_one(self):
        """Clients {0, 1}, {0, 2}, {1, 2}: whatever is chosen, a sample of each must stay."""
        own = [np.array([0, 1]), np.array([0, 2]), np.array([1, 2])]
        split = splits._finished(own, splits._pool(np.zeros(3, int), None))
        for seed in range(30):
            rest, held = hold_out(split, np.zeros(3, int), 0.5, seed)
            assert min(rest.client_sizes) >= 1
            assert not set(np.concatenate(rest.indices)) & set(np.concatenate(held))

    def test_clients_that_share_everything_hold_out_the_share_and_no_more(self):
        own = [np.arange(100)] * 5
        split = splits._finished(own, splits._pool(np.arange(100) % 4, None))
        rest, held = hold_out(split, np.arange(100) % 4, 0.2, 0)
        assert rest.client_sizes == [80] * 5
        assert all(np.bincount(part % 4).tolist() == [5] * 4 for part in held)

    def test_clients_that_share_some_hold_out_the_share_at_least(self):
        own = [np.arange(0, 100), np.arange(50, 150), np.arange(100, 200)]
        split = splits._finished(own, splits._pool(np.zeros(200, int), None))
        for seed in range(10):
            _, held = hold_out(split, np.zeros(200, int), 0.3, seed)
            assert all(30 <= len(part) <= 45 for part in held)

    def test_what_remains_is_a_split_of_its_own(self):
        split = make_split(DirichletSplit(), LABELS, 4, 0)
        rest, _ = hold_out(split, LABELS, 0.3, 0)
        assert rest.fingerprint == splits._fingerprint(rest.indices) != split.fingerprint
        assert rest.label_skew == splits._label_skew(rest.indices, splits._pool(LABELS, None))
        assert rest.fingerprint == hold_out(split, LABELS, 0.3, 0)[0].fingerprint
        assert rest.fingerprint != hold_out(split, LABELS, 0.3, 1)[0].fingerprint

    def test_choices_are_not_those_of_the_test_sets(self):
        """Streams of one seed: the held-out half and the test half of like samples must differ."""
        split = make_split(IidSplit(), np.zeros(100, int), 1, 0)
        order = np.random.default_rng([splits._TEST_STREAM, 0]).permutation(100)
        held = hold_out(split, np.zeros(100, int), 0.5, 0)[1][0]
        assert not np.array_equal(np.sort(order[:50]), held)

    def test_nothing_held_out_is_refused(self):
        split = make_split(IidSplit(), LABELS, 60, 0)
        with pytest.raises(
            BadInput, match=r"^evaluation.validation_share: 0.1 of at most 3 samples a client"
        ):
            hold_out(split, LABELS, 0.1, 0)
        alone = make_split(IidSplit(), LABELS, 180, 0)
        with pytest.raises(BadInput, match=r"^evaluation.validation_share: 0.9 of at most 1 samples"):
            hold_out(alone, LABELS, 0.9, 0)


class TestSkew:
    def test_one_class_each_is_one_minus_one_in_c(self):
        split = make_split(PathologicalSplit(classes_per_client=1), EQUAL, 10, 0)
        assert split.label_skew == pytest.approx(1 - 1 / 10)
        assert split.size_skew == 0

    def test_one_client_has_none(self):
        split = make_split(IidSplit(), LABELS, 1, 0)
        assert split.label_skew == 0
        assert split.size_skew == 0

    def test_is_weighted_by_size(self):
        """Clients {0: 3} and {0: 1, 1: 2}: pooled (4/6, 2/6), both at distance 1/3."""
        pool = splits._pool(np.array([0, 0, 0, 0, 1, 1]), None)
        even = (np.array([0, 1, 2]), np.array([3, 4, 5]))
        assert splits._label_skew(even, pool) == pytest.approx(1 / 3)
        # {0: 4, 1: 1} at distance 2/15 of weight 5/6, {1: 1} at distance 2/3 of weight 1/6.
        uneven = (np.array([0, 1, 2, 3, 4]), np.array([5]))
        assert splits._label_skew(uneven, pool) == pytest.approx(5 / 6 * 2 / 15 + 1 / 6 * 2 / 3)

    def test_size_skew_is_the_coefficient_of_variation(self):
        split = splits._finished([np.array([0]), np.array([1, 2, 3])], splits._pool(np.zeros(4, int), None))
        assert split.client_sizes == [1, 3]
        assert split.size_skew == pytest.approx(0.5)


class TestFingerprint:
    def test_tells_order_sizes_and_content_apart(self):
        a, b, c = np.array([0]), np.array([1, 2]), np.array([0, 1])
        parts = [(a, b), (b, a), (c, np.array([2])), (a, np.array([1, 3])), (np.array([0, 1, 2]),)]
        assert len({splits._fingerprint(p) for p in parts}) == len(parts)

    @pytest.mark.parametrize(
        ("spec", "start"),
        [
            (IidSplit(), "a5d37ce0ae75f7e8"),
            (IidSplit(shots=2), "db81d2e7ae54a8aa"),
            (IidSplit(shots=2, overlap=True), "030d4d80e9c15c0e"),
            (DirichletSplit(), "f849fb72113be121"),
            (DirichletSplit(cap=True), "c04ddc7178a6a604"),
            (PathologicalSplit(), "eb959d390dd7ea59"),
            (QuantitySplit(), "1c9a4d949a7559ae"),
            (DomainSplit(), "6cc22580738c2a02"),
            (DomainSplit(shots=2), "4542366ae1ff7915"),
            (DomainSplit(shots=2, overlap=True), "a6648bcf1addbc19"),
            (DomainSplit(domains_per_client=2), "f36989888da16103"),
        ],
        ids=str,
    )
    def test_splits_are_the_same_as_ever(self, spec, start):
        """Results of different versions compare only on the same split: a change here must be wanted."""
        assert make_split(spec, LABELS, 6, 42, DOMAINS).fingerprint[:16] == start


def refusal(spec, clients, labels=LABELS, domains=DOMAINS):
    with pytest.raises(BadInput) as caught:
        make_split(spec, labels, clients, 0, domains)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestRefusals:
    @pytest.mark.parametrize(
        ("spec", "clients", "message"),
        [
            (IidSplit(), 0, "clients: 0 is no number of clients; use at least 1"),
            (IidSplit(), 181, "clients: 181 is more than the 180 training samples; use at most 180"),
            (
                IidSplit(shots=5),
                10,
                "split.shots: 5 with 10 clients needs 50 images of class 3 (5 for each client that has it), "
                "and there are 30; use shots 3 at most or clients 6 at most or overlap true",
            ),
            (
                IidSplit(shots=31, overlap=True),
                9,
                "split.shots: 31 with 9 clients needs 31 images of class 3 (31 for each client that has it), "
                "and there are 30; use shots 30 at most",
            ),
            (
                DirichletSplit(shots=31),
                9,
                "split.shots: 31 with 9 clients needs 31 images of class 3 (31 for each client that has it), "
                "and there are 30; use shots 30 at most",
            ),
            (
                DomainSplit(shots=4),
                9,
                "split.shots: 4 with 9 clients needs 12 images of class 3 in domain 0 (4 for each client "
                "that has it), and there are 10; use shots 3 at most or clients 6 at most or overlap true",
            ),
            (
                PathologicalSplit(classes_per_client=5),
                10,
                "split.classes_per_client: 5 is more than the task's 4 classes; use at most 4",
            ),
            (
                PathologicalSplit(classes_per_client=1),
                3,
                "split.classes_per_client: 1 for each of 3 clients would leave 1 of the 4 classes out; "
                "use at least 2",
            ),
            (
                PathologicalSplit(),
                80,
                "clients: 80 needs 40 images of class 3 (1 for each client that has it), and there are 30; "
                "use clients 60 at most",
            ),
            (
                PathologicalSplit(classes_per_client=None),
                5,
                "clients: 5 cannot share out 4 classes once each (split.classes_per_client: null); "
                "use at most 4 clients or give a number of classes",
            ),
            (DomainSplit(), 2, "clients: 2 is fewer than the task's 3 domains; use at least 3"),
            (
                DomainSplit(domains_per_client=2),
                1,
                "clients: 1 with 2 domains each is fewer than the task's 3 domains; use at least 2",
            ),
            (
                DomainSplit(domains_per_client=4),
                9,
                "split.domains_per_client: 4 is more than the task's 3 domains; use at most 3",
            ),
            (
                DomainSplit(domains_per_client=3),
                61,
                "clients: 61 is too many for domains of 60, 60, 60 samples; use at most 60",
            ),
            (
                DomainSplit(domains_per_client=2, shots=4),
                4,
                "split.shots: 4 with 4 clients needs 12 images of class 3 in domain 0 (4 for each client "
                "that has it), and there are 10; use shots 3 at most or clients 3 at most or overlap true",
            ),
            (
                DomainSplit(domains_per_client=3, shots=4),
                3,
                "split.shots: 4 with 3 clients needs 12 images of class 3 in domain 0 (4 for each client "
                "that has it), and there are 10; use shots 3 at most or clients 2 at most or overlap true",
            ),
        ],
    )
    def test_message(self, spec, clients, message):
        assert refusal(spec, clients) == message

    def test_domain_without_domains(self):
        message = refusal(DomainSplit(), 3, domains=None)
        assert message == (
            "split.name: domain needs a task with domains, and this one has none; "
            "use iid, dirichlet, pathological, quantity"
        )

    def test_domain_too_small_for_its_clients(self):
        domains = np.repeat([0, 1], [178, 2])
        assert refusal(DomainSplit(), 6, domains=domains) == (
            "clients: 6 is too many for domains of 178, 2 samples; use at most 5"
        )
        assert make_split(DomainSplit(), LABELS, 5, 0, domains).client_sizes[1] == 1

    def test_domains_of_another_length(self):
        assert refusal(DomainSplit(), 3, domains=DOMAINS[:5]) == (
            "domains: 5 values for 180 samples; give one a sample"
        )

    def test_nothing_helps(self):
        """One image of a class that two clients would need whatever their number."""
        labels = np.array([0, 0, 0, 0, 1, 2])
        assert refusal(PathologicalSplit(classes_per_client=3), 2, labels, None).endswith(
            "use clients 1 at most"
        )
        labels = np.repeat([0, 1, 2], [1, 5, 5])
        assert refusal(PathologicalSplit(classes_per_client=2), 2, labels, None).endswith("use another split")

    @given(cases(st.integers(1, 60)))
    @settings(max_examples=100, deadline=None)
    def test_what_a_refusal_proposes_works(self, case):
        spec, labels, clients, domains = case
        try:
            make_split(spec, labels, clients, 0, domains)
        except BadInput as error:
            _, ways = str(error).split("; use ")
            for way in ways.split(" or "):
                field, value = way.removesuffix(" at most").split()
                if field == "clients":
                    make_split(spec, labels, int(value), 0, domains)
                else:
                    changed = spec.model_copy(update={field: json.loads(value)})
                    make_split(changed, labels, clients, 0, domains)


class Holder(BaseModel):
    split: SplitConfig = IidSplit()


class TestConfig:
    @pytest.mark.parametrize("name", SPLITS)
    def test_a_bare_name_a_mapping_and_an_instance_are_one(self, name):
        expected = SPLITS[name]()
        for given_ in (name, {"name": name}, expected):
            assert Holder(split=given_).split == expected

    @pytest.mark.parametrize("name", SPLITS)
    def test_survives_json(self, name):
        holder = Holder(split={"name": name, "shots": 4, "overlap": True})
        assert Holder.model_validate_json(holder.model_dump_json()) == holder

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("dirichlt", "'dirichlt' is no split; did you mean 'dirichlet'?"),
            ({"name": ["iid"]}, "['iid'] is no split"),
            ({"beta": 1}, "{'beta': 1} has no name; choose from iid, dirichlet"),
            ({"name": "dirichlet", "bta": 1}, "'bta' is no field of dirichlet; did you mean 'beta'?"),
            ({"name": "iid", "overlap": True}, "overlap true has no meaning without shots"),
            ({"name": "dirichlet", "beta": 0}, "greater than 0"),
            ({"name": "dirichlet", "beta": "nan"}, "less than or equal to 1000000"),
            ({"name": "dirichlet", "beta": float("inf")}, "less than or equal to 1000000"),
            ({"name": "quantity", "alpha": -1}, "greater than 0"),
            ({"name": "iid", "shots": 0}, "greater than or equal to 1"),
            ({"name": "pathological", "classes_per_client": 0}, "greater than or equal to 1"),
        ],
    )
    def test_bad_values(self, value, message):
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(SplitConfig).validate_python(value)
        (error,) = caught.value.errors()
        assert message in error["msg"]

    def test_every_split_is_listed_with_a_line(self):
        listed = describe_splits()
        assert list(listed) == ["iid", "dirichlet", "pathological", "quantity", "domain"]
        assert all(20 < len(line) <= 100 and line.endswith(".") for line in listed.values())


def test_import_is_light():
    """Splits are listed and validated at start: no tensor library, no partitioner."""
    heavy = "{'torch', 'pandas', 'flwr_datasets', 'datasets', 'matplotlib', 'sklearn'}"
    code = f"import sys, bench.splits; sys.exit(str({heavy} & set(sys.modules) or '') or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
