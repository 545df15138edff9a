"""Cache of embeddings on disk: each clip is embedded once, and looked up by the content of its file."""
