"""What every room stands on: devices, files, names; no room of ours below it."""
