"""Tests of fed_a2v.encoders."""
