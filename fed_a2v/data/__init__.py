"""Sound in: data sets, their division among sites, and the cache of embeddings."""
