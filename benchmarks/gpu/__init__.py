"""All tests and measurements that need a GPU: `make gpu`."""
