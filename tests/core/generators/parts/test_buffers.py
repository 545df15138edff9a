"""Buffers take the shapes of a checkpoint and the device of the generator."""

import pytest
import torch

from fed_a2v.core.generators.flow import FlowGenerator
from fed_a2v.core.generators.gan import GANGenerator
from fed_a2v.core.generators.gaussian import GaussianGenerator
from fed_a2v.core.generators.gmm import GMMGenerator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator
from fed_a2v.core.generators.multimodal import MultimodalVAEGenerator
from fed_a2v.core.generators.noise import NoiseGenerator
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.generators.vae_t5 import VAEWithT5Generator
from fed_a2v.core.statistics import PrototypeBatch

NAMES = ("dog", "rain", "wind")
GENERATORS = {
    "gaussian": lambda: GaussianGenerator(12, 8),
    "noise": lambda: NoiseGenerator(12, 8),
    "gmm": lambda: GMMGenerator(12, 8, reduced_dim=4),
    "vae": lambda: ConditionedVAEGenerator(12, 8, hidden_dim=8, latent_dim=2),
    "vae, closed form": lambda: ConditionedVAEGenerator(12, 8, hidden_dim=8, latent_dim=2, closed_form=True),
    "multimodal": lambda: MultimodalVAEGenerator(12, 8, t5_dim=6, hidden_dim=8, latent_dim=2),
    "vae_t5": lambda: VAEWithT5Generator(12, 8, t5_dim=6, hidden_dim=8, latent_dim=2),
    "gan": lambda: GANGenerator(12, 8, reduced_dim=4),
    "flow": lambda: FlowGenerator(12, 8, reduced_dim=4),
    "grouped": lambda: GroupedVAEGenerator(
        lambda: ConditionedVAEGenerator(12, 8, hidden_dim=8, latent_dim=2, conditional=False),
        {name: (name,) for name in NAMES},
    ),
}


# A tensor on "meta" has a shape and no numbers, so torch warns that none were copied.
@pytest.mark.filterwarnings("ignore:.*meta parameter")
@pytest.mark.parametrize("kind", GENERATORS)
def test_loaded_buffers_lie_where_the_generator_lies(kind):
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(6)
    embeddings = torch.randn(18, 1, 12, generator=random)
    rows = PrototypeBatch(embeddings, labels, torch.full((18,), 3.0), torch.ones_like(embeddings), NAMES)
    trained, other = GENERATORS[kind](), GENERATORS[kind]()
    clip, t5 = torch.randn(3, 1, 8, generator=random), torch.randn(3, 4, 6, generator=random)
    trained.fit(rows, trained.conditions_from(clip, t5), 1, 0.0, random)
    checkpoint = trained.checkpoint()
    other.to("meta")
    # Machines without a GPU have no other device with values, which an optimiser needs.
    other.load_training_state = lambda state: None
    other.load_checkpoint(checkpoint)
    found, wanted = other.state_dict(), trained.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }
    assert {tensor.device.type for tensor in found.values()} == {"meta"}
