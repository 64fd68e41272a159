"""Label-budget studies for science with scarce labels."""
