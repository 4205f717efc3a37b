"""A cloud on a laptop: servers on loopback that speak the protocols of W&B and Google Cloud."""
