"""Experiments by name: one YAML file per preset, and what reads them."""
