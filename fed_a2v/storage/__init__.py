"""Reading and writing files safely: atomic writes, checks of untrusted content, and no unpickling."""
