"""What the tests of the real kernel stand on."""
