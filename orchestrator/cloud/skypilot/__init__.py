"""Runs on the clouds through SkyPilot: what the laptop, the jobs controller and the node do."""
