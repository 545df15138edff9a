"""Embeddings on disk: computed once, found by the content of the clips."""
