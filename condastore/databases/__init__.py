"""Database backends: Django's own, with what this installation adds to them."""
