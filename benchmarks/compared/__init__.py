"""What is compared: our backends, the published forms rebuilt, and how far their results agree."""
