"""What an encoder's own label head says of the classes: a prior from no clip of any site.

The logits of a public label head, such as the AudioSet head of AST or YAMNet, are tied to the federation's classes by
text vectors of both. They help if the sites' sums are few or noisy, and they are all that is known of classes that no
site has recorded.

Shapes: N clips; K labels of the head; C classes; V the width of the text vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

# Of the softmax over the labels; at this temperature a class takes its nearest few labels.
TEMPERATURE = 0.1


@dataclass(frozen=True)
class LabelPrior:
    """Scores of classes from the logits of a label head.

    Attributes:
        ties: (C, K) how much each label counts for each class; rows add up to 1.
        mean, std: (K,) moments of the logits over clips, which make the labels' logits comparable.
    """

    ties: Tensor
    mean: Tensor
    std: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """(N, C) scores of (N, K) logits, with mean 0 and deviation 1 over the classes of each clip."""
        return standardised((logits - self.mean) / self.std @ self.ties.T)


def ties_by_text(classes: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """(C, K) ties of classes to labels: the softmax of the cosines of their (C, V) and (K, V) centred text vectors.

    The centre is the mean of the classes' vectors, as text vectors share a large component.
    """
    centre = classes.mean(dim=0)
    cosines = F.normalize(classes - centre, dim=1) @ F.normalize(labels - centre, dim=1).T
    return (cosines / temperature).softmax(dim=1)


def standardised(scores: Tensor) -> Tensor:
    """(N, C) scores with mean 0 and deviation 1 in each row, so that scores of different kinds can be added."""
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
