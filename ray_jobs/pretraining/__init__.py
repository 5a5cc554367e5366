"""The pretrain job: checks, workers, the end of a run."""
