"""A real arm64 Linux to ssh into, standing in for a Raspberry Pi. See README.md in this folder."""
