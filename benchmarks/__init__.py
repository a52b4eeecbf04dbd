"""One script per published figure, each with its peer in the same run; figures stand in RESULTS.md."""
