"""Measurements and calculations, to be run by hand: ``python -m bench.NAME``."""
