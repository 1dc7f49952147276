"""What every measurement shares: where it runs, what it samples, which models there are, how results are compared."""
