"""What the launcher and the training process agree on."""

LAUNCHER_PID = "FINJEPA_LAUNCHER_PID"  # environment variable: the process without which training must not go on
DEVICE_NAME = "FINJEPA_DEVICE_NAME"  # environment variable: name of the CPU that a cluster gave to one training
CONFIG_FILE = "config.json"  # in the run folder: what is to be trained
FAILURE_FILE = "failure.txt"  # in the run folder: one line, why training ended without a result
RESULT_FOLDER = "result"  # in the run folder: what becomes the checkpoint
