"""What an encoder's own label head says of the classes: a prior from no clip of any site.

A public label head, such as the AudioSet head of AST or YAMNet, has a direction in the public space for each label.
Ties of classes to labels turn these into a direction for each class, in which its mean is expected before any clip is
seen. `shared_gaussian` shrinks noisy class means towards it, and `unseen_discriminant` has nothing else for classes
that no site has recorded. Noise decides how much the prior counts: means without noise do not change.

The rows of the space are centred on the sites' clips, so that labels need no moments from data: with the sites' moments
the prior alone was measured to be better by 0.03, with noisy sums the result by nothing.

Shapes: K labels of the head; C classes; Da width of the embeddings; R columns of the public space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.names import clean_name

# Of the softmax over the labels; at this temperature a class takes its nearest few labels.
TEMPERATURE = 0.1
# Neighbouring columns whose variances are averaged: a variance over few noisy class means is as uncertain as it is
# large, and columns are in the order of the head's strength.
NEIGHBOURS = 9
SMALLEST_VARIANCE = 1e-6
ENDINGS = ("ing", "ed", "es", "s", "e")


def ties_by_text(classes: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """(C, K) ties of classes to labels: the softmax of the cosines of their (C, V) and (K, V) centred text vectors.

    The centre is the mean of the classes' vectors, as text vectors share a large component.
    """
    centre = classes.mean(dim=0)
    cosines = F.normalize(classes - centre, dim=1) @ F.normalize(labels - centre, dim=1).T
    return (cosines / temperature).softmax(dim=1)


def ties_by_name(classes: Sequence[str], labels: Sequence[str]) -> Tensor:
    """(C, K) ties of classes to the labels that share most words with them, in equal parts; 0 without a common word.

    A label is a list of alternatives, such as "Waves, surf", of which the best counts. English endings are ignored.
    """
    alternatives = [[_words(part) for part in re.split("[,()]", label) if _words(part)] for label in labels]
    shared = torch.tensor(
        [
            [max((len(own & each) / len(own | each) for each in parts), default=0.0) for parts in alternatives]
            for own in map(_words, classes)
        ]
    )
    best = (shared == shared.amax(dim=1, keepdim=True)) & (shared > 0)
    return best / best.sum(dim=1, keepdim=True).clamp(min=1)


def _words(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in re.findall(r"[^\W\d_]+", clean_name(text)))


def _stem(word: str) -> str:
    ending = next((each for each in ENDINGS if word.endswith(each) and len(word) - len(each) >= 3), "")
    return word.removesuffix(ending)


def class_weights(ties: Tensor, weight: Tensor) -> Tensor:
    """(C, Da) weights of the classes in a head of (K, Da) `weight`; 0 for a class that is tied to no label."""
    return ties @ (weight - weight.mean(dim=0))


def directions(prior: Tensor, recorded: Tensor) -> Tensor:
    """(C, R) unit directions of the classes from the mean of the recorded ones; 0 for a class without a prior.

    Args:
        prior: (C, R) weights of the classes in the public space.
        recorded: (K,) classes whose means are known.
    """
    tied = (prior != 0).any(dim=1)
    known = recorded[tied[recorded]]
    centre = prior[known].mean(dim=0) if len(known) else torch.zeros_like(prior[0])
    return F.normalize((prior - centre) * tied[:, None], dim=1)


def informed_means(means: Tensor, noise: Tensor, prior: Tensor) -> tuple[Tensor, float]:
    """Shrink class means towards their prior directions, by the share of noise in what these do not explain.

    Empirical Bayes (Efron & Morris 1973): a mean is the mean of all, plus a multiple of its direction that is the same
    for all classes, plus a Gaussian rest.

    Args:
        means: (K, R), of at least two classes.
        noise: (K, R) variance of the noise on each entry.
        prior: (K, R) unit directions, or 0.

    Returns:
        The means, and the multiple, at least 0.
    """
    centre = means.mean(dim=0)
    away = means - centre
    strength = float(((away * prior).sum() / prior.square().sum().clamp(min=1e-12)).clamp(min=0))
    expected = strength * prior
    rest = away - expected
    variance = rest.var(dim=0, correction=0) - noise.mean(dim=0)
    smooth = F.avg_pool1d(variance[None], NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2, count_include_pad=False)[0]
    spread = smooth.clamp(min=SMALLEST_VARIANCE)
    return centre + expected + rest * spread / (spread + noise), strength
