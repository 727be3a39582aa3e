"""What the commands share: options and their checks, errors, files, bars, and a clip with its descriptors."""
