"""One module per scenario: ``TITLE``, and ``run(ctx)`` that yields rows."""
