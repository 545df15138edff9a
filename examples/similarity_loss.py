"""A custom loss for the VAE: the mean squared error, an annealed KL term, and a cosine term.

PYTHONPATH=examples fed-a2v train generator.loss._target_=similarity_loss.SimilarityLoss
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SimilarityLoss(nn.Module):
    """Reconstruction, KL and similarity, each averaged over the data's dimensions.

    Args:
        beta_schedule: `constant`, or `linear` from 0 over 50 epochs.
        beta_max: weight of the KL term.
        similarity: weight of one minus the cosine.
    """

    def __init__(self, beta_schedule: str = "constant", beta_max: float = 1.0, similarity: float = 0.1) -> None:
        super().__init__()
        self.beta_schedule = beta_schedule
        self.beta_max = beta_max
        self.similarity = similarity

    def forward(self, recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, epoch: int) -> Tensor:
        """The loss of a batch; `epoch` counts from 0 over all rounds."""
        ramp = min(1.0, epoch / 50) if self.beta_schedule == "linear" else 1.0
        kl = 0.5 * torch.sum(mu.pow(2) + logvar.exp() - 1 - logvar, dim=-1).mean() / x[0].numel()
        similarity = 1 - F.cosine_similarity(recon_x, x, dim=-1).mean()
        return F.mse_loss(recon_x, x) + ramp * self.beta_max * kl + self.similarity * similarity
