"""What is in a workdir, and how it is written and read: checkpoints, snapshots, metrics, the page."""
