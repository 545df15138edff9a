"""Files that the rest is kept in: written whole or not at all, and never unpickled."""
