"""Measurements and calculations to run by hand: ``python -m bench.NAME``."""
