"""The sweep job: grids of settings on Ray Tune."""
