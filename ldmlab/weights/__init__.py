"""The lab's three feature networks as files, and the script that makes them: `python -m ldmlab.weights.train`."""
