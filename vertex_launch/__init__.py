"""W&B Launch on Vertex AI, as functions that run only when something happens."""
