"""Shared memory: segments, the lane (a ring pair), the arena (lent blocks), and who notices that a peer is gone."""
