"""W&B Launch on Vertex AI, as functions that run only when something happens."""

__version__ = "0.1.0"
