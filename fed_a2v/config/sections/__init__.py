"""The sections of the settings, by subject; `fed_a2v.config.schema` puts them together."""
