"""What a scan costs, as ratios measured in one run: ``python -m bench``."""
