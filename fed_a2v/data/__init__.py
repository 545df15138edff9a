"""Audio data: data sets, the division of their clips among sites, and the cache of embeddings."""
