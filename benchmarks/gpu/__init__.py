"""All that a GPU has to show: `make gpu`."""
