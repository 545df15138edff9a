"""Frozen encoders: of sound, and of the class names that the adapters learn to reach."""
