"""The side of the server: Flower strategy, aggregation, evaluation and the trainer that runs them."""
