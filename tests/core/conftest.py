"""Builders that the tests of `core` share: synthetic classes, and generators that record their calls."""

import io

import pytest
import torch

from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.prototypes import fingerprint, summarise_class
from fed_a2v.core.server_step import ClientUpdate
from fed_a2v.core.statistics import PrototypeBatch


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_start():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def draws(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world():
    return World()


class World:
    """Sounds that are easy to distinguish: each class has its own mean and correlated spread.

    The deviation within a class is about `scale`, that between classes twice as much.
    """

    def __init__(self, classes=10, width=48, tokens=1, scale=1.0, offset=0.0, non_negative=False, condition=24):
        random = draws(1)
        self.names = tuple(f"class {number:02}" for number in range(classes))
        self.shape = (tokens, width)
        self.scale, self.offset, self.non_negative = scale, offset, non_negative
        size = tokens * width
        self.means = 2 * torch.randn(classes, size, generator=random)
        self.directions = torch.randn(classes, 4, size, generator=random) / 4**0.5
        # Close to each other, as text vectors are.
        self.conditions = torch.randn(classes, condition, generator=random) + 2

    def clips(self, per_class, seed=2):
        """(N, S, Da) embeddings and (N,) labels, ordered by class."""
        random = draws(seed)
        counts = [per_class] * len(self.names) if isinstance(per_class, int) else per_class
        labels = torch.arange(len(self.names)).repeat_interleave(torch.tensor(counts))
        common = torch.randn(len(labels), 1, 4, generator=random) @ self.directions[labels]
        own = 0.5 * torch.randn(len(labels), self.means.shape[1], generator=random)
        rows = self.scale * (self.means[labels] + common.squeeze(1) + own) + self.offset
        if self.non_negative:
            rows = rows.clamp(min=0)
        return rows.view(-1, *self.shape), labels

    def rows(self, groups=8, size=3, seed=2, variance=True):
        """Prototypes: means over random groups of `size` clips."""
        clips, labels = self.clips(groups * size, seed)
        clips = clips.view(-1, size, *self.shape)
        spread = clips.var(dim=1, correction=0)
        return PrototypeBatch(
            embeddings=clips.mean(dim=1),
            labels=labels[::size].clone(),
            counts=torch.full((len(clips),), float(size)),
            variances=spread if variance else torch.zeros_like(spread),
            names=self.names,
        )

    def prompts(self, clip_tokens=1, t5=None):
        """Class prompts: CLIP (C, clip_tokens, 24) and, for a (tokens, width) `t5`, T5."""
        random = draws(3)
        clip = self.conditions.unsqueeze(1).repeat(1, clip_tokens, 1)
        classes = len(self.names)
        return ClassPrompts(self.names, clip, None if t5 is None else torch.randn(classes, *t5, generator=random))

    def adapters(self, hidden=32, t5=None, kind=Adapters):
        """Small adapters, the same at every call."""
        torch.manual_seed(4)
        return kind(self.shape[1], self.prompts(t5=t5), hidden)

    def updates(self, sites=2, clips_per_class=24, **share):
        """Replies of sites that own the classes in turn: site k has classes k, k + sites, ..."""
        clips, labels = self.clips(clips_per_class)
        replies = []
        for site in range(sites):
            said = [
                summarise_class(self.names[label], clips[labels == label], **{"kind": "prototypes", **share})
                for label in range(site, len(self.names), sites)
            ]
            said = [prompts for prompts in said if prompts is not None]
            replies.append(ClientUpdate(f"site {site}", said, fingerprint(said)))
        return replies

    def nearest_class(self, rows):
        """The class whose mean is nearest to each of the (N, S, Da) `rows`."""
        means = self.scale * self.means + self.offset
        if self.non_negative:
            clips, labels = self.clips(200, seed=9)
            means = torch.stack([clips[labels == label].mean(0).flatten() for label in range(len(self.names))])
        return torch.cdist(rows.flatten(1), means).argmin(dim=1)

    def variance_ratio(self, rows, labels):
        """Variance of `rows` within classes over that of many real clips."""
        real, real_labels = self.clips(300, seed=11)
        return float(within_variance(rows, labels).mean() / within_variance(real, real_labels).mean())


def within_variance(rows, labels):
    """(D,) unbiased variance within classes, averaged over the classes."""
    return torch.stack([rows[labels == label].flatten(1).var(dim=0) for label in labels.unique()]).mean(dim=0)


def through_a_file(state):
    """`state` as it comes back from a file by safe loading."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_bits(left, right):
    """Two nested states are equal, bit for bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_bits(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_bits(one, other)
    else:
        assert left == right


class StubGenerator(Generator):
    """Records its training rows and samples, which are random and `distance` away from the data."""

    kind = "stub"

    def __init__(self, world, distance=0.0):
        super().__init__(world.shape[1], world.conditions.shape[1], world.shape[0])
        self.distance = distance
        self.fitted = []
        self.made = []

    def fit(self, rows, conditions, epochs, noise, random):
        self.fitted.append((rows, conditions))
        return []

    def sample(self, num_samples, visual_condition, device=None, random=None):
        noise = torch.randn(num_samples, self.sequence_length, self.input_dim, generator=random)
        rows = noise + self.distance * torch.linspace(-1, 1, self.input_dim)
        self.made.append(rows)
        return rows


class WatchedAdapters(Adapters):
    """Adapters that record their training rows."""

    def forward(self, audio):
        if torch.is_grad_enabled():
            self.seen = torch.cat([getattr(self, "seen", audio[:0]), audio])
        return super().forward(audio)


def contains(rows, row):
    """Whether (S, Da) `row` is one of `rows`."""
    return bool((rows == row).flatten(1).all(dim=1).any())
