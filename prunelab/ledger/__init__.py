"""What happened: events, guesses and notes, the one file they are kept in, and their words."""
