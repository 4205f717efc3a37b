"""The stand-in for Vertex AI."""
