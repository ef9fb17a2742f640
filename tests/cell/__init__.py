"""The cell: the real SkyPilot and its AWS and GCP clouds, sealed on this machine. See README.md."""
