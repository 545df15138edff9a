"""Images of prompt embeddings: their generation by diffusion, a contact sheet, and their scores by CLIP."""
