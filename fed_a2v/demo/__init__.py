"""The page of `fed-a2v demo`: what a run makes of a sound."""
