"""What is in a workdir, and how it is written: checkpoints, snapshots, metrics, the page."""
