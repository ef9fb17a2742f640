"""`infra: local`: nodes are process trees here; their market is simulated, their loss is real."""
