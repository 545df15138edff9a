"""Frozen encoders: audio encoders, and text encoders that compute the class prompts."""
