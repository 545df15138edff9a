"""Parts that several generators share."""
