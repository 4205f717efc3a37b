"""Everything that talks to the outside: W&B, Vertex AI, Secret Manager, Cloud Storage, Pub/Sub."""
