"""Random folders for the loaders, good and bad. `python -m tests.fuzz` runs thousands, the tests a fixed few."""
