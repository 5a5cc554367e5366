"""The evaluate and embed jobs: representations, probes, figures."""
