"""Data sets, one per file with the name of its option: each lists its clips and reads their audio or embeddings."""
