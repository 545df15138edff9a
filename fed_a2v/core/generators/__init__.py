"""Generators of audio embeddings: one interface (`base`), one file each."""
