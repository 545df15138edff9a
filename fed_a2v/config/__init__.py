"""Configuration: typed schema, composition by Hydra, and error messages."""
