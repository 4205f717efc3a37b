"""The configuration: two files and the environment."""
