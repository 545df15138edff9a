"""Pictures of prompt embeddings: drawing them by diffusion, laying them out, judging them."""
