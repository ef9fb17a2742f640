"""Replays of markets in virtual time: what each policy would have cost, and the least possible."""
