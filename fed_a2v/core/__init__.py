"""The method itself, in torch and numpy only: no Flower, no Hydra, no Weights & Biases; a test checks that."""
