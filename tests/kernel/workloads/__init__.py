"""The catalogue of kinds of memory; catalogue.py lists them."""
