"""The machine that a run is on: its device, its memories, and how parts come to the device and leave it."""
