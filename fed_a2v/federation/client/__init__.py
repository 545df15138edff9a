"""The side of a site: Flower client, local training and the limits that the owner sets."""
