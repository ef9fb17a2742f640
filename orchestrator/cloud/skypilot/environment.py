"""What the laptop, the jobs controller and the nodes of a run tell one another by environment."""

RUN_FOLDER = "ORCHESTRATE_RUN_FOLDER"
"""URL of the run folder."""
JOB = "ORCHESTRATE_JOB"
"""Names one submission of the run. SKYPILOT_TASK_ID would not do: it changes with the controller's
process (0.14.1 makes it of a time that only that process knows)."""
LAUNCH = "ORCHESTRATE_LAUNCH"
"""Name of the launch that a node belongs to; set anew for each, empty without our plugin."""
OFFER = "ORCHESTRATE_OFFER"
"""The launch's quoted offer, as JSON; empty without our plugin."""
OWNER = "ORCHESTRATE_OWNER"
"""Writer of the controller's heartbeat; empty without our plugin."""
WHEEL = "ORCHESTRATE_WHEEL"
"""File name of this project's wheel, staged among the run's inputs."""
WHEEL_SHA256 = "ORCHESTRATE_WHEEL_SHA256"
"""Its hash, and the name of its folder there."""
EXTRAS = "ORCHESTRATE_EXTRAS"
"""Extras to install on the nodes, separated by commas."""
RANKS = "ORCHESTRATE_RANKS"
"""Training processes per node, where they are not one per GPU."""

STORE_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AZURE_STORAGE_ACCOUNT_NAME")
"""Where the bucket is, if not at its cloud's usual address; credentials are not among these."""
