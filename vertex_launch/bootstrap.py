"""Runs a job's code in its container."""
