"""Weights in and out: foreign checkpoints as encoders, encoders as files of other libraries."""
