"""A receiver for what boxes forward: keeps each event once, and says what it has."""
